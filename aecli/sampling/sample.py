"""New images out of a prior over a model's latents."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.configs import MOST_DRAWN, SampleConfig
from aecli.data.sources.registry import SUFFIXES
from aecli.errors import ConfigError
from aecli.figures.grid import draw_sheet
from aecli.figures.png import encode_png, png_bytes
from aecli.inference.loaded_model import LoadedModel, load_model
from aecli.progress import Listener, ignore
from aecli.runtime.distributed import Distributed
from aecli.runtime.work_queue import map_shared
from aecli.sampling.prior_choice import LatentPrior, choose_prior, require_prior
from aecli.sampling.walks import draw_walk
from aecli.storage.atomic_files import check_writable_file, write_bytes
from aecli.storage.outputs import prepare_output_folder, write_output

# Samples are always decoded in batches of this size, the last one filled up, so that image i never depends on n.
SAMPLE_BATCH = 16


@dataclass(frozen=True)
class SampleResult:
    """Where the samples are (a sheet or a folder), how many, and which prior they were drawn from.

    Of a walk, `n` is the pictures in a row.
    """

    out: Path
    n: int
    prior: str


def sample(config: SampleConfig, listen: Listener = ignore) -> SampleResult:
    """Decode draws from a prior to images; image i depends on (seed, i) alone. Or draw a walk (see `draw_walk`).

    In processes that torchrun started, all of them must call this: they share the images; the first one's `listen`
    hears of it, and it writes the sheet.

    Raises:
        ModelError: the model was never trained towards N(0, I) (an AE), and that is what `config` asks for.
        AecliError: one of its other kinds, for a model, a prior or an output that can't be used; in one of several
            processes also a PeerError, where another one failed.
    """
    with Distributed() as distributed:
        return _sample(config, distributed, listen if distributed.is_main_process else ignore)


def _sample(config: SampleConfig, distributed: Distributed, listen: Listener) -> SampleResult:
    out, n = config.target, config.count
    is_walk = bool(config.interpolate or config.traverse)
    is_sheet = is_walk or out.suffix.lower() == ".png"
    if not is_sheet and out.suffix.lower() in (*SUFFIXES, ".gif"):
        raise ConfigError(f"--out {out}: a sheet is a .png; any other name is a folder")
    if is_sheet and n > MOST_DRAWN:
        raise ConfigError(f"--n {n}: a sheet holds {MOST_DRAWN} at the most; name a folder with --out")
    if is_walk and out.suffix.lower() not in (".png", ".gif", ".webp"):
        raise ConfigError(f"--out {out}: a walk is drawn as a .png sheet, or an animated .gif or .webp")
    loaded = load_model(config.model, config.runs, config.device, config.precision)
    require_prior(loaded, config.prior)
    if distributed.is_main_process and is_sheet:
        check_writable_file(out, "--out")
    elif distributed.is_main_process:
        prepare_output_folder(out, config.overwrite, listen)
    prior = distributed.main_process_first(lambda: choose_prior(loaded, config, listen))
    if is_walk:
        if distributed.is_main_process:
            write_output(out, draw_walk(loaded, prior, config), listen)
        distributed.barrier()
        return SampleResult(out, config.walk_steps, prior.name)
    every = range(n)
    batches = [every[first : first + SAMPLE_BATCH] for first in every[::SAMPLE_BATCH]]

    def write(indices: range) -> None:
        for index, pixels in zip(indices, draw_samples(loaded, prior, indices).numpy(), strict=True):
            write_bytes(out / f"{index:06d}.png", encode_png(pixels))

    if is_sheet:
        dealt = map_shared(
            lambda indices: draw_samples(loaded, prior, indices).numpy(), batches, "sampling", 1, distributed, listen
        )
        images = _in_order(dealt, loaded.image_size, distributed)
        if distributed.is_main_process:
            write_output(out, png_bytes(draw_sheet([pixels.transpose(1, 2, 0) for pixels in images])), listen)
    else:
        map_shared(write, batches, "sampling", 1, distributed, listen)
    distributed.barrier()
    return SampleResult(out, n, prior.name)


def draw_samples(loaded: LoadedModel, prior: LatentPrior, indices: range, exact: bool = False) -> torch.Tensor:
    """Return the images of at most SAMPLE_BATCH indices (N, 3, S, S): uint8, or `exact` float32 in [-1, 1]."""
    filled = range(indices.start, indices.start + SAMPLE_BATCH)
    return loaded.decode(prior.draw(filled), exact)[: len(indices)]


def _in_order(
    dealt: Sequence[tuple[int, NDArray[np.uint8]]], size: int, distributed: Distributed
) -> Iterator[NDArray[np.uint8]]:
    """Yield the images uint8 (3, S, S) of all processes in the order of their batches."""
    images = [np.empty((0, 3, size, size), dtype=np.uint8), *(images for _, images in dealt)]
    places = [np.empty(0, dtype=np.int64), *(np.full(len(images), number) for number, images in dealt)]
    order = np.argsort(np.concatenate(distributed.all_gather(np.concatenate(places))), kind="stable")
    gathered = np.concatenate(distributed.all_gather(np.concatenate(images)))
    return (gathered[place] for place in order)
