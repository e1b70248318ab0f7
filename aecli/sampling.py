"""New images out of a model's prior."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.configs import MOST_DRAWN, SampleConfig
from aecli.data.sources import SUFFIXES
from aecli.dealing import deal
from aecli.errors import ConfigError, ModelError
from aecli.figures.grid import draw_sheet, png_bytes
from aecli.files import claim_file, write_bytes
from aecli.inference import encode_png
from aecli.loaded import LoadedModel, load_model
from aecli.outputs import claim_output_folder, write_output
from aecli.progress import Listener, ignore
from aecli.runtime.distributed import World

# Samples are always decoded in batches of this size, the last one filled up, so that image i never depends on n.
SAMPLE_BATCH = 16


@dataclass(frozen=True)
class SampleResult:
    """Where the samples are (a sheet or a folder), and how many."""

    out: Path
    n: int


def sample(config: SampleConfig, listen: Listener = ignore) -> SampleResult:
    """Decode draws from N(0, temperature²·I) to images; image i depends on (seed, i) alone.

    In processes that torchrun started, all of them must call this: they share the images; the first one's `listen`
    hears of it, and it writes the sheet.

    Raises:
        ModelError: the model was never trained towards that prior (an AE).
        AecliError: one of its other kinds, for a model or an output that can't be used; in one of several processes
            also a PeerError, where another one failed.
    """
    with World() as world:
        return _sample(config, world, listen if world.is_main else ignore)


def _sample(config: SampleConfig, world: World, listen: Listener) -> SampleResult:
    is_sheet = config.out.suffix.lower() == ".png"
    if not is_sheet and config.out.suffix.lower() in (*SUFFIXES, ".gif"):
        raise ConfigError(f"--out {config.out}: a sheet is a .png; any other name is a folder")
    if is_sheet and config.n > MOST_DRAWN:
        raise ConfigError(f"--n {config.n}: a sheet holds {MOST_DRAWN} at the most; name a folder with --out")
    loaded = load_model(config.model, config.runs, config.device, config.precision)
    require_prior(loaded)
    if world.is_main and is_sheet:
        claim_file(config.out, "--out")
    elif world.is_main:
        claim_output_folder(config.out, config.overwrite, listen)
    world.wait_for_all()
    every = range(config.n)
    batches = [every[first : first + SAMPLE_BATCH] for first in every[::SAMPLE_BATCH]]

    def write(indices: range) -> None:
        for index, pixels in zip(indices, draw_samples(loaded, config, indices).numpy(), strict=True):
            write_bytes(config.out / f"{index:06d}.png", encode_png(pixels))

    if is_sheet:
        dealt = deal(
            lambda indices: draw_samples(loaded, config, indices).numpy(), batches, "sampling", 1, world, listen
        )
        images = _in_order(dealt, loaded.image_size, world)
        if world.is_main:
            write_output(config.out, png_bytes(draw_sheet([pixels.transpose(1, 2, 0) for pixels in images])), listen)
    else:
        deal(write, batches, "sampling", 1, world, listen)
    world.wait_for_all()
    return SampleResult(config.out, config.n)


def require_prior(loaded: LoadedModel) -> None:
    """Raise ModelError unless training pulled the model's latents towards N(0, I)."""
    if not loaded.model.prior_is_normal:
        raise ModelError(
            f"{loaded.title} can't be sampled from N(0, I): nothing in its training brings its latents near that, "
            "so random ones decode to noise\ntrain one with a prior instead: aecli train vae"
        )


def draw_samples(loaded: LoadedModel, config: SampleConfig, indices: range, exact: bool = False) -> torch.Tensor:
    """Return the images of at most SAMPLE_BATCH indices (N, 3, S, S): uint8, or `exact` float32 in [-1, 1]."""
    shape = loaded.model.latent_shape(loaded.image_size)
    filled = range(indices.start, indices.start + SAMPLE_BATCH)
    latents = [config.temperature * sample_noise(shape, config.seed, index) for index in filled]
    return loaded.decode(torch.stack(latents), exact)[: len(indices)]


def _in_order(dealt: Sequence[tuple[int, NDArray[np.uint8]]], size: int, world: World) -> Iterator[NDArray[np.uint8]]:
    """Yield the images uint8 (3, S, S) of all processes in the order of their batches."""
    images = [np.empty((0, 3, size, size), dtype=np.uint8), *(images for _, images in dealt)]
    places = [np.empty(0, dtype=np.int64), *(np.full(len(images), number) for number, images in dealt)]
    order = np.argsort(np.concatenate(world.gather(np.concatenate(places))), kind="stable")
    gathered = np.concatenate(world.gather(np.concatenate(images)))
    return (gathered[place] for place in order)


def sample_noise(shape: Sequence[int], seed: int, index: int) -> torch.Tensor:
    """Return standard normal noise float32 that depends on (seed, index) alone, on whatever device it will be used."""
    entropy = np.random.SeedSequence([seed, index])
    return torch.from_numpy(np.random.Generator(np.random.PCG64(entropy)).standard_normal(shape, dtype=np.float32))
