"""Recipes: bundled files of option values."""

from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the built-in recipes."""
    return sorted(file.stem for file in FOLDER.glob("*.toml"))
