"""Priors over a trained model's latents, and images drawn from them."""
