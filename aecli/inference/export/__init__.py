"""Trained models in the formats of other programs, one file a format, with a model card."""
