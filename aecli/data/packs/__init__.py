"""Decoded images, kept: in memory, in the cache folder, or decoded again in every epoch."""
