"""From an encoded image to 8-bit RGB pixels, in bounded memory and time."""
