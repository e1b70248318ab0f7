"""Metrics of image similarity, one file each, and distances between sets of images."""
