"""Any number of photographs, cropped from those that ship with scikit-image."""

from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

SOURCES = ("astronaut", "coffee", "chelsea", "rocket", "immunohistochemistry", "retina", "hubble_deep_field")


def write_photographs(folder: Path, count: int, width: int, height: int, suffix: str = "png") -> Path:
    """Write `count` different crops of width x height: random position and scale, half of them mirrored."""
    folder.mkdir(parents=True)
    photographs = [Image.fromarray(getattr(data, name)()[..., :3]) for name in SOURCES]
    generator = np.random.default_rng(0)
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        scale = generator.uniform(0.4, 1.0)
        crop_width, crop_height = (max(8, int(scale * side)) for side in photograph.size)
        left = int(generator.integers(0, photograph.width - crop_width + 1))
        top = int(generator.integers(0, photograph.height - crop_height + 1))
        crop = photograph.resize(
            (width, height), Image.Resampling.LANCZOS, (left, top, left + crop_width, top + crop_height)
        )
        if generator.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        crop.save(folder / f"{number:06d}.{suffix}", quality=90)
    return folder
