"""aecli: train, reconstruct, sample, measure and draw with image autoencoders."""

__version__ = "0.1.0"
