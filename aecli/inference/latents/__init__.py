"""Latents in files, in the layouts that trainers of diffusion models read: written by `encode`, read by `decode`."""
