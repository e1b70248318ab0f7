"""New images out of a model's prior."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from aecli.configs import MOST_DRAWN, SampleConfig
from aecli.data.sources import SUFFIXES
from aecli.errors import ConfigError, ModelError
from aecli.figures.grid import draw_sheet, png_bytes
from aecli.files import claim_file, write_bytes
from aecli.inference import LoadedModel, encode_png, load_model
from aecli.outputs import claim_output_folder, write_output
from aecli.progress import Listener, Progress, ignore

# Samples are always decoded in batches of this size, the last one filled up, so that image i never depends on n.
SAMPLE_BATCH = 16


@dataclass(frozen=True)
class SampleResult:
    """Where the samples are (a sheet or a folder), and how many."""

    out: Path
    n: int


def sample(config: SampleConfig, listen: Listener = ignore) -> SampleResult:
    """Decode draws from N(0, temperature²·I) to images; image i depends on (seed, i) alone.

    Raises:
        ModelError: the model was never trained towards that prior (an AE).
        AecliError: one of its other kinds, for a model or an output that can't be used.
    """
    is_sheet = config.out.suffix.lower() == ".png"
    if not is_sheet and config.out.suffix.lower() in (*SUFFIXES, ".gif"):
        raise ConfigError(f"--out {config.out}: a sheet is a .png; any other name is a folder")
    if is_sheet and config.n > MOST_DRAWN:
        raise ConfigError(f"--n {config.n}: a sheet holds {MOST_DRAWN} at the most; name a folder with --out")
    loaded = load_model(config.model, config.runs, config.device, config.precision)
    if not loaded.model.prior_is_normal:
        raise ModelError(
            f"{loaded.title} can't be sampled from N(0, I): nothing in its training brings its latents near that, "
            "so random ones decode to noise\ntrain one with a prior instead: aecli train vae"
        )
    if not is_sheet:
        claim_output_folder(config.out, config.overwrite, listen)
    else:
        claim_file(config.out, "--out")
    images = _samples(loaded, config)
    shown = []
    for index, pixels in enumerate(images):
        if is_sheet:
            shown.append(pixels.transpose(1, 2, 0))
        else:
            write_bytes(config.out / f"{index:06d}.png", encode_png(pixels))
        listen(Progress("sampling", index + 1, config.n))
    if is_sheet:
        write_output(config.out, png_bytes(draw_sheet(shown)), listen)
    return SampleResult(config.out, config.n)


def _samples(loaded: LoadedModel, config: SampleConfig) -> Iterator[np.ndarray]:
    """Yield uint8 (3, S, S), one an index."""
    shape = loaded.model.latent_shape(loaded.image_size)
    for first in range(0, config.n, SAMPLE_BATCH):
        latents = [
            config.temperature * sample_noise(shape, config.seed, index) for index in range(first, first + SAMPLE_BATCH)
        ]
        yield from loaded.decode(torch.stack(latents))[: config.n - first]


def sample_noise(shape: Sequence[int], seed: int, index: int) -> torch.Tensor:
    """Return standard normal noise float32 that depends on (seed, index) alone, on whatever device it will be used."""
    entropy = np.random.SeedSequence([seed, index])
    return torch.from_numpy(np.random.Generator(np.random.PCG64(entropy)).standard_normal(shape, dtype=np.float32))
