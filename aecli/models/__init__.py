"""Image autoencoders behind one contract, found by name through one registry."""
