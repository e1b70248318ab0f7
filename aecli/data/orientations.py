"""Mirrored and turned images: the eight symmetries of a square, drawn for each image of an epoch.

An orientation is a number from 0 to 7: plus 1 where the image is mirrored left to right, then plus 2 for each quarter
turn, counter-clockwise. So an array of bools says which images are mirrored.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_FLIPS_SPAWN_KEY, _TURNS_SPAWN_KEY = (1,), (3,)  # the order takes the parent seed sequence, the pieces (2,) and (4,)

Orientations = NDArray[np.uint8]


def flips(n: int, seed: int, epoch: int) -> NDArray[np.bool_]:
    """Which of `n` images an epoch mirrors left to right: (n,) by image, not by position in the order."""
    return _generator(seed, epoch, _FLIPS_SPAWN_KEY).random(n) < 0.5


def quarter_turns(n: int, seed: int, epoch: int) -> NDArray[np.uint8]:
    """By how many quarter turns, 0 to 3, an epoch turns each of `n` images: (n,) by image."""
    return _generator(seed, epoch, _TURNS_SPAWN_KEY).integers(4, size=n, dtype=np.uint8)


def epoch_orientations(n: int, seed: int, epoch: int, flip: bool, turns: bool) -> Orientations | None:
    """The orientation of each of `n` images in an epoch: (n,) by image; None where all stay as they are."""
    if not (flip or turns):
        return None
    mirrored = flips(n, seed, epoch).astype(np.uint8) if flip else np.zeros(n, np.uint8)
    return mirrored + 2 * quarter_turns(n, seed, epoch) if turns else mirrored


def oriented(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """A view of an image (…, S, S), or (…, H, W) without a quarter turn, in that orientation."""
    mirrored = image[..., ::-1] if orientation & 1 else image
    return np.rot90(mirrored, orientation >> 1, (-2, -1)) if orientation >> 1 else mirrored


def oriented_batch(images: torch.Tensor, orientations: torch.Tensor, has_turns: bool) -> torch.Tensor:
    """The images (N, C, S, S), each in its orientation (N,), on one device and without waiting for it."""
    codes = orientations[:, None, None, None]
    mirrored = torch.where(codes % 2 == 1, images.flip(-1), images)
    turned = mirrored
    for count in range(1, 4) if has_turns else ():
        turned = torch.where(codes // 2 == count, mirrored.rot90(count, (-2, -1)), turned)
    return turned


def _generator(seed: int, epoch: int, spawn_key: tuple[int, ...]) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, epoch], spawn_key=spawn_key))
