"""What lies between two images in a model's latent space, and along its principal directions."""

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.configs import SampleConfig
from aecli.data.decoding.decode import Pixels, decode_fitted
from aecli.data.image_ref import FileRef
from aecli.errors import DataError
from aecli.figures.animation import animation_bytes
from aecli.figures.grid import draw_rows
from aecli.figures.png import png_bytes
from aecli.inference.loaded_model import LoadedModel
from aecli.sampling.prior_choice import LatentPrior

REACH = 3.0  # standard deviations, to either side, that a direction is followed
_SMALL_ANGLE = 1e-4  # radians, below which an arc is a line

Floats = NDArray[np.float32]


def draw_walk(loaded: LoadedModel, prior: LatentPrior, config: SampleConfig) -> bytes:
    """Return a labelled sheet as a PNG, or what it shows from left to right as an animation, as `--out` is called.

    Raises:
        DataError: an image can't be read.
    """
    heads, rows, originals = (
        _interpolate(loaded, prior, config) if config.interpolate else _traverse(loaded, prior, config)
    )
    suffix = config.target.suffix.lower()
    if suffix == ".png":
        if originals:
            first, last = originals
            heads = ["A", *heads, "B"]
            rows = [(label, [first, *images, last]) for label, images in rows]
        return png_bytes(draw_rows(rows, heads=heads))
    frames = [draw_rows([(label, [images[step]]) for label, images in rows]) for step in range(len(heads))]
    return animation_bytes(frames, suffix)


Row = tuple[str, list[Pixels]]


def _interpolate(
    loaded: LoadedModel, prior: LatentPrior, config: SampleConfig
) -> tuple[list[str], list[Row], tuple[Pixels, Pixels]]:
    """One row from the first image to the second, both as the model takes them."""
    assert config.interpolate is not None  # for the type checker; draw_walk has looked
    first, last = (_read(path, loaded) for path in config.interpolate)
    codes, _ = loaded.latents(loaded.batch(np.stack([first, last]).transpose(0, 3, 1, 2)))
    flat = codes.reshape(2, -1)
    shares = np.linspace(0, 1, config.walk_steps, dtype=np.float32)
    if prior.fitted is None:
        between = np.stack([slerp(flat[0], flat[1], float(share)) for share in shares])
    else:
        start, end = prior.fitted.project(flat)
        between = prior.fitted.expand(np.stack([start + share * (end - start) for share in shares]))
    heads = [f"{share:.0%}" for share in shares]
    return heads, [(f"along {prior.name}", _decode(loaded, between))], (first, last)


def slerp(start: Floats, end: Floats, share: float) -> Floats:
    """Return the point at `share`, from 0 to 1, of the arc between two vectors (Shoemake 1985).

    Between two draws from N(0, I), a straight line would pass much nearer to 0 than any draw lies.
    """
    lengths = float(np.linalg.norm(start)) * float(np.linalg.norm(end))
    cosine = float(start @ end) / lengths if lengths else 1.0
    angle = float(np.arccos(np.clip(cosine, -1.0, 1.0)))
    if not _SMALL_ANGLE < angle < np.pi - _SMALL_ANGLE:
        return start + np.float32(share) * (end - start)
    sine = np.sin(angle)
    weights = np.float32(np.sin((1 - share) * angle) / sine), np.float32(np.sin(share * angle) / sine)
    point: Floats = weights[0] * start + weights[1] * end
    return point


def _traverse(loaded: LoadedModel, prior: LatentPrior, config: SampleConfig) -> tuple[list[str], list[Row], None]:
    """A row a principal direction, from the mean minus 3 deviations to the mean plus 3."""
    fitted = prior.fitted
    if fitted is None:
        raise DataError("--traverse: the principal directions aren't known, since no prior could be fitted")
    steps = np.linspace(-REACH, REACH, config.walk_steps, dtype=np.float32)
    directions = range(min(config.count, len(fitted.deviations)))
    variances = fitted.deviations.astype(np.float64) ** 2
    shares = fitted.share * variances / variances.sum()
    rows = []
    for direction in directions:
        scores = np.zeros((len(steps), len(fitted.deviations)), dtype=np.float32)
        scores[:, direction] = steps
        label = f"direction {direction + 1} ({shares[direction]:.1%})"
        rows.append((label, _decode(loaded, fitted.expand(scores))))
    return [f"{step:+.3g}σ" if step else "mean" for step in steps], rows, None


def _read(path: Path, loaded: LoadedModel) -> Pixels:
    """uint8 (S, S, 3) of an image file, as the model takes it; raises DataError."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"--interpolate {path}: {error.strerror or error}") from error
    return decode_fitted(FileRef(path.name, str(path.parent), status), loaded.image_size, loaded.fit)


def _decode(loaded: LoadedModel, latents: Floats) -> list[Pixels]:
    """The images uint8 (S, S, 3) of latents (N, D)."""
    shape = loaded.model.latent_shape(loaded.image_size)
    pictures = loaded.decode_all(torch.from_numpy(np.ascontiguousarray(latents)).reshape(-1, *shape))
    return list(pictures.permute(0, 2, 3, 1).numpy())
