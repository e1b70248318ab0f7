"""Recipes: bundled files of option values, layered under a user's own."""
