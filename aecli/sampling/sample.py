"""New images from a prior over a model's latents."""

from dataclasses import dataclass
from itertools import chain
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
from aecli.storage.atomic_files import write_bytes
from aecli.storage.outputs import check_writable_file, prepare_output_folder, write_output

# Samples are always decoded in batches of this size, with the last one filled up, so that image i doesn't depend on n.
SAMPLE_BATCH = 16


@dataclass(frozen=True)
class SampleResult:
    """The output (a sheet or a folder), the number of images, and the prior that they were drawn from."""

    out: Path
    n: int
    prior: str


def sample(config: SampleConfig, listen: Listener = ignore) -> SampleResult:
    """Decode draws from a prior to images, where image i depends on (seed, i) alone.

    Under torchrun all processes must call this: they share the images, and the main process's `listen` gets the
    reports.

    Raises:
        ModelError: `config` asks for N(0, I), and the model was not trained towards it (an AE).
        AecliError: a model, prior or output can't be used; with several processes also PeerError, where another one
            failed.
    """
    with Distributed() as distributed:
        return _sample_images(config, distributed, listen if distributed.is_main_process else ignore)


def _sample_images(config: SampleConfig, distributed: Distributed, listen: Listener) -> SampleResult:
    out, n = config.out, config.n
    is_sheet = out.suffix.lower() == ".png"
    if not is_sheet and out.suffix.lower() in (*SUFFIXES, ".gif"):
        raise ConfigError(f"--out {out}: a sheet is a .png; any other name is a folder")
    if is_sheet and n > MOST_DRAWN:
        raise ConfigError(f"--n {n}: a sheet holds at most {MOST_DRAWN} images\nhint: name a folder with --out")
    loaded = load_model(config.model, config.runs, config.device, config.precision)
    require_prior(loaded, config.prior)
    if distributed.is_main_process and is_sheet:
        check_writable_file(out, "--out")
    elif distributed.is_main_process:
        prepare_output_folder(out, config.overwrite, listen)
    prior = distributed.main_process_first(
        lambda: choose_prior(loaded, config.prior, listen, runs=config.runs, temperature=config.temperature,
                             seed=config.seed, steps=config.steps)
    )  # fmt: skip
    batches = [range(first, min(first + SAMPLE_BATCH, n)) for first in range(0, n, SAMPLE_BATCH)]

    def draw(indices: range) -> NDArray[np.uint8]:
        images: NDArray[np.uint8] = draw_samples(loaded, prior, indices).numpy()
        return images

    def write(indices: range) -> None:
        for index, pixels in zip(indices, draw(indices), strict=True):
            write_bytes(out / f"{index:06d}.png", encode_png(pixels))

    if is_sheet:
        images = chain.from_iterable(map_shared(draw, batches, "sampling", 1, distributed, listen))
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
