"""Image autoencoders and priors behind one interface, found by name in one registry."""
