"""From an encoded image to 8-bit RGB pixels, within bounds."""
