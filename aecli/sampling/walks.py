"""Paths through a latent space: between two images, and along principal directions."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.configs import InterpolateConfig, TraverseConfig
from aecli.data.decoding.conversions import ConversionCounts
from aecli.data.decoding.decode import Pixels
from aecli.data.image_ref import FileRef
from aecli.errors import ConfigError, DataError
from aecli.figures.animation import animation_bytes
from aecli.figures.grid import draw_rows
from aecli.figures.png import png_bytes
from aecli.inference.loaded_model import LoadedModel
from aecli.progress import Listener, Notice, ignore
from aecli.runtime.distributed import Distributed
from aecli.sampling.latent_prior import LatentPrior
from aecli.sampling.prior_choice import choose_walk_prior, open_prior
from aecli.storage.outputs import check_writable_file, write_output

WALK_SUFFIXES = (".png", ".gif", ".webp")
REACH = 3.0  # standard deviations to either side of the mean
_SMALL_ANGLE = 1e-4  # radians, below which an arc is computed as a line

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LatentWalk:
    """Decoded images along paths through a latent space.

    `headings` name the steps; each row is a label and one image uint8 (S, S, 3) per step. `ends` are the two input
    images of an interpolation.
    """

    headings: Sequence[str]
    rows: Sequence[tuple[str, list[Pixels]]]
    ends: tuple[Pixels, Pixels] | None = None


@dataclass(frozen=True)
class WalkResult:
    """The picture written, the number of images per row, and the prior in whose space the path lies."""

    out: Path
    steps: int
    prior: str


def draw_walk(config: InterpolateConfig | TraverseConfig, listen: Listener = ignore) -> WalkResult:
    """Draw the path between two images, or paths along principal directions, as a labelled sheet or an animation.

    Raises:
        AecliError: a model, prior, image or output can't be used.
    """
    if config.out.suffix.lower() not in WALK_SUFFIXES:
        raise ConfigError(f"--out {config.out}: expected a .png sheet, or an animated .gif or .webp")
    with Distributed() as distributed:
        listen = listen if distributed.is_main_process else ignore
        loaded, prior = open_prior(
            config,
            distributed,
            lambda: check_writable_file(config.out, "--out"),
            lambda loaded: choose_walk_prior(loaded, config, listen),
            listen,
        )
        if distributed.is_main_process:
            if isinstance(config, InterpolateConfig):
                walk = interpolate(loaded, prior, config.first, config.second, config.steps, listen)
            else:
                walk = traverse(loaded, prior, config.n, config.steps)
            write_output(config.out, encode_walk(walk, config.out.suffix), listen)
        distributed.barrier()
    return WalkResult(config.out, config.steps, prior.name)


def interpolate(
    loaded: LoadedModel, prior: LatentPrior, first: Path, last: Path, steps: int, listen: Listener = ignore
) -> LatentWalk:
    """Return one row of `steps` images from an image file to another; say to `listen` what reading did to them.

    The first and the last are their reconstructions. The path between is an arc where the prior's draws are spherical:
    between the latents under N(0, I), whitened latents under a fitted prior, and under a flow the noise that it carries
    to the latents. What the prior leaves out of latents goes along an arc of its own.

    Raises:
        DataError: an image can't be read.
    """
    ends = _read(first, loaded, listen), _read(last, loaded, listen)
    latents, _ = loaded.latents(loaded.batch(np.stack(ends).transpose(0, 3, 1, 2)))
    latents = latents.reshape(2, -1)
    fractions = np.linspace(0, 1, steps, dtype=np.float32)
    noise = prior.to_noise(latents)
    left_out = latents - prior.from_noise(noise)
    path = prior.from_noise(_arc(noise, fractions)) + _arc(left_out, fractions)
    path[0], path[-1] = latents
    headings = [f"{fraction:.0%}" for fraction in fractions]
    return LatentWalk(headings, [(f"along {prior.name}", _decode(loaded, path))], ends)


def traverse(loaded: LoadedModel, prior: LatentPrior, directions: int, steps: int) -> LatentWalk:
    """Return one row of `steps` images per principal direction, from the mean minus 3 std to the mean plus 3 std.

    There are at most `directions` rows, in order of falling variance.

    Raises:
        DataError: no prior was fitted, so there are no principal directions.
    """
    fitted = prior.fitted
    if fitted is None:
        raise DataError("the principal directions are unknown, because no prior could be fitted to the latents")
    positions = np.linspace(-REACH, REACH, steps, dtype=np.float32)
    variances = fitted.std.astype(np.float64) ** 2
    ratios = fitted.explained_variance_ratio * variances / variances.sum()
    rows = []
    for direction in range(min(directions, len(fitted.std))):
        whitened = np.zeros((steps, len(fitted.std)), dtype=np.float32)
        whitened[:, direction] = positions
        label = f"direction {direction + 1} ({ratios[direction]:.1%})"
        rows.append((label, _decode(loaded, fitted.unwhiten(whitened))))
    return LatentWalk([f"{position:+.3g}σ" if position else "mean" for position in positions], rows)


def encode_walk(walk: LatentWalk, suffix: str) -> bytes:
    """Return a labelled sheet (`.png`), or an animation (`.gif`, `.webp`) with one frame per step."""
    if suffix.lower() != ".png":
        frames = [
            draw_rows([(label, [images[step]]) for label, images in walk.rows]) for step in range(len(walk.headings))
        ]
        return animation_bytes(frames, suffix.lower())
    if walk.ends is None:
        return png_bytes(draw_rows(walk.rows, heads=walk.headings))
    first, last = walk.ends
    rows = [(label, [first, *images, last]) for label, images in walk.rows]
    return png_bytes(draw_rows(rows, heads=["A", *walk.headings, "B"]))


def _arc(ends: Floats, fractions: Floats) -> Floats:
    """Return the points (N, D) at N fractions of the arc between two vectors (2, D)."""
    return np.stack([slerp(ends[0], ends[1], float(fraction)) for fraction in fractions])


def slerp(start: Floats, end: Floats, fraction: float) -> Floats:
    """Return the point at `fraction`, from 0 to 1, of the arc between two vectors (D,) (Shoemake, SIGGRAPH 1985).

    A straight line between two samples of N(0, I) would pass much nearer to 0 than any sample is.
    """
    lengths = float(np.linalg.norm(start)) * float(np.linalg.norm(end))
    cosine = float(start @ end) / lengths if lengths else 1.0
    angle = float(np.arccos(np.clip(cosine, -1.0, 1.0)))
    if not _SMALL_ANGLE < angle < np.pi - _SMALL_ANGLE:
        return start + np.float32(fraction) * (end - start)
    sine = np.sin(angle)
    weights = np.float32(np.sin((1 - fraction) * angle) / sine), np.float32(np.sin(fraction * angle) / sine)
    point: Floats = weights[0] * start + weights[1] * end
    return point


def _read(path: Path, loaded: LoadedModel, listen: Listener) -> Pixels:
    """Return an image file as the model's input uint8 (S, S, 3); raises DataError."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    one_size = loaded.of_one_size("a path is between images of", listen)
    decoded, counts = one_size.read_image(FileRef(path.name, str(path.parent), status)), ConversionCounts()
    counts.add(path.name, decoded)
    for text in counts.notices(str(path.parent), loaded.background):
        listen(Notice(text))
    return decoded.pixels


def _decode(loaded: LoadedModel, latents: Floats) -> list[Pixels]:
    """Return the images uint8 (S, S, 3) of latents (N, D)."""
    shape = loaded.model.latent_shape(loaded.image_size)
    images = loaded.decode_all(torch.from_numpy(np.ascontiguousarray(latents)).reshape(-1, *shape))
    return list(images.permute(0, 2, 3, 1).numpy())
