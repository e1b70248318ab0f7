"""Decoded images: kept in memory or in the cache folder, or decoded again in every epoch."""
