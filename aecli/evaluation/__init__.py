"""Predictions measured against ground truth, image by image and as sets."""
