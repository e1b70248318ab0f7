"""Distributions over a trained model's latents: fitted ones, and what is drawn from any."""
