"""Trained models at work: reconstructions, latents, comparison grids."""
