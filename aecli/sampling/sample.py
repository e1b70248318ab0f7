"""New images from a prior over a model's latents."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from aecli.configs import SampleConfig
from aecli.configs.checks import MOST_DRAWN
from aecli.data.sources.registry import SUFFIXES
from aecli.errors import ConfigError
from aecli.figures.grid import draw_sheet
from aecli.figures.png import encode_png, png_bytes
from aecli.inference.loaded_model import LoadedModel
from aecli.progress import Listener, ignore
from aecli.runtime.distributed import Distributed
from aecli.runtime.work_queue import map_shared
from aecli.sampling.latent_prior import LatentPrior
from aecli.sampling.prior_choice import choose_prior, open_prior
from aecli.storage.atomic_files import write_bytes
from aecli.storage.outputs import check_writable_file, prepare_output_folder, write_output

# Samples are decoded in batches of exactly this size, the last one padded, so that image i doesn't depend on n.
SAMPLE_BATCH = 16


@dataclass(frozen=True)
class SampleResult:
    """The output (a sheet or a folder), the number of images, and the prior that they are samples of."""

    out: Path
    n: int
    prior: str


def sample(config: SampleConfig, listen: Listener = ignore) -> SampleResult:
    """Decode samples of a prior to images; image i depends only on (seed, i).

    Under torchrun all processes must call this: they divide the images, and the main process's `listen` is called.

    Raises:
        ModelError: the prior is N(0, I), and the model was not trained towards it (an AE).
        AecliError: a model, prior or output can't be used; PeerError if another process failed.
    """
    with Distributed() as distributed:
        return _sample_images(config, distributed, listen if distributed.is_main_process else ignore)


def _sample_images(config: SampleConfig, distributed: Distributed, listen: Listener) -> SampleResult:
    out, n = config.out, config.n
    is_sheet = out.suffix.lower() == ".png"
    if not is_sheet and out.suffix.lower() in (*SUFFIXES, ".gif"):
        raise ConfigError(f"--out {out}: a sheet is a .png file\nhint: a name without an image suffix is a folder")
    if is_sheet and n > MOST_DRAWN:
        raise ConfigError(f"--n {n}: a sheet holds at most {MOST_DRAWN} images\nhint: name a folder with --out")

    def check_output() -> None:
        if is_sheet:
            check_writable_file(out, "--out")
        else:
            prepare_output_folder(out, config.overwrite, listen)

    loaded, prior = open_prior(
        config, distributed, check_output, lambda loaded: choose_prior(loaded, config, listen), listen
    )

    def decode(indices: range) -> NDArray[np.uint8]:
        images: NDArray[np.uint8] = decode_samples(loaded, prior, indices).numpy()
        return images

    def write(indices: range) -> None:
        for index, pixels in zip(indices, decode(indices), strict=True):
            write_bytes(out / f"{index:06d}.png", encode_png(pixels))

    if is_sheet:
        images = chain.from_iterable(map_shared(decode, sample_batches(n), "sampling", 1, distributed, listen))
        if distributed.is_main_process:
            write_output(out, png_bytes(draw_sheet([pixels.transpose(1, 2, 0) for pixels in images])), listen)
    else:
        map_shared(write, sample_batches(n), "sampling", 1, distributed, listen)
    distributed.barrier()
    return SampleResult(out, n, prior.name)


def sample_batches(n: int) -> list[range]:
    """Return the indices of `n` samples in batches."""
    return [range(start, min(start + SAMPLE_BATCH, n)) for start in range(0, n, SAMPLE_BATCH)]


def decode_samples(loaded: LoadedModel, prior: LatentPrior, indices: range, exact: bool = False) -> torch.Tensor:
    """Return the images of at most SAMPLE_BATCH indices (N, 3, S, S): uint8, or `exact` float32 in [-1, 1]."""
    filled = range(indices.start, indices.start + SAMPLE_BATCH)
    return loaded.decode(prior.sample(filled), exact)[: len(indices)]
