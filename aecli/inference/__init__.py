"""Trained models applied to images: reconstructions, latents and comparison grids."""
