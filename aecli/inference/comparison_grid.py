"""Random images and what each model makes of them, in labelled rows: the report's figure."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aecli.configs import GridConfig
from aecli.data.decoding.decode import DecodeError, decode_fitted
from aecli.data.image_ref import ImageRef, file_paths
from aecli.errors import CheckpointError, ConfigError, DataError
from aecli.figures.grid import draw_rows
from aecli.figures.png import png_bytes
from aecli.inference.loaded_model import LoadedModel, load_model
from aecli.models import registry
from aecli.models.base import Autoencoder
from aecli.progress import Listener, Notice, Progress, ignore
from aecli.runs.folder import newest_run
from aecli.runs.images import choose_images
from aecli.storage.atomic_files import check_writable_file
from aecli.storage.outputs import forbid_overwriting_inputs, write_output


@dataclass(frozen=True)
class GridResult:
    """Where the picture is, the names of its images, and the labels of its rows."""

    out: Path
    images: list[str]
    rows: list[str]


def draw_comparison(config: GridConfig, listen: Listener = ignore) -> GridResult:
    """Draw `n` images chosen by `seed`: Ground Truth, then one row a model.

    Raises:
        CheckpointError: no model is named and none has a run.
        AecliError: one of its other kinds, for a model, images or an output that can't be used.
    """
    if config.out.suffix.lower() != ".png":
        raise ConfigError(f"--out {config.out}: expected the name of a .png file")
    check_writable_file(config.out, "--out")
    names = config.models or tuple(name for name in registry.names() if _draws(name) and newest_run(name, config.runs))
    if not names:
        raise CheckpointError(f"no registry model has a run under {config.runs}; train one first: aecli train vae")
    loaded = [load_model(name, config.runs, config.device, config.precision) for name in names]
    images = choose_images(loaded[0].located, config.data, None)
    forbid_overwriting_inputs("--out", [config.out], file_paths(images))
    chosen, truth = _choose(images, loaded[0], config, listen)
    rows = [("Ground Truth", truth)]
    for done, (label, each) in enumerate(zip(_labels(loaded), loaded, strict=True)):
        listen(Progress("reconstructing", done, len(loaded)))
        sees_the_same = (each.image_size, each.fit) == (loaded[0].image_size, loaded[0].fit)
        seen = truth if sees_the_same else [decode_fitted(image, each.image_size, each.fit) for image in chosen]
        rows.append((label, [_reconstruct(each, pixels) for pixels in seen]))
    write_output(config.out, png_bytes(draw_rows(rows)), listen)
    return GridResult(config.out, [image.name for image in chosen], [label for label, _ in rows])


def _draws(name: str) -> bool:
    return issubclass(registry.load(name), Autoencoder)


def _choose(
    images: list[ImageRef], model: LoadedModel, config: GridConfig, listen: Listener
) -> tuple[list[ImageRef], list[np.ndarray]]:
    """Return `n` images in an order drawn from the seed, and their pixels as the first model sees them."""
    chosen: list[ImageRef] = []
    pixels: list[np.ndarray] = []
    for index in np.random.default_rng(config.seed).permutation(len(images)):
        if len(chosen) == config.n:
            break
        try:
            pixels.append(decode_fitted(images[index], model.image_size, model.fit))
            chosen.append(images[index])
        except DecodeError as error:
            listen(Notice(f"passed over {error}"))
    if not chosen:
        raise DataError(f"none of the {len(images)} images can be read; name others with --data")
    if len(chosen) < config.n:
        listen(Notice(f"drawing {len(chosen)} images: there are no more than that"))
    return chosen, pixels


def _reconstruct(model: LoadedModel, pixels: np.ndarray) -> np.ndarray:
    """Return what a model makes of an image, both uint8 (S, S, 3)."""
    reconstruction: np.ndarray = model.reconstruct(pixels.transpose(2, 0, 1)[None])[0].transpose(1, 2, 0)
    return reconstruction


def _labels(models: list[LoadedModel]) -> list[str]:
    """Call each row by its model's class; where two are of one class by the run too, or by the whole path."""
    titles = [each.title for each in models]
    with_run = [f"{each.title} {each.located.label}" for each in models]
    with_path = [f"{each.title} {each.located.checkpoint.parent}" for each in models]
    times, times_with_run = Counter(titles), Counter(with_run)
    return [
        title if times[title] == 1 else run if times_with_run[run] == 1 else path
        for title, run, path in zip(titles, with_run, with_path, strict=True)
    ]
