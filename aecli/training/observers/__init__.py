"""Observers of training: previews, TensorBoard."""
