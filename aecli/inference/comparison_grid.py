"""Random images and each model's reconstructions of them, in labelled rows: the report's figure."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aecli.configs import GridConfig
from aecli.data.decoding.conversions import ConversionCounts
from aecli.data.decoding.decode import DecodeError
from aecli.data.image_ref import ImageRef, file_paths
from aecli.errors import CheckpointError, ConfigError, DataError
from aecli.figures.grid import draw_rows
from aecli.figures.png import png_bytes
from aecli.inference.loaded_model import LoadedModel, load_model
from aecli.models import registry
from aecli.models.base import Autoencoder
from aecli.progress import Listener, Notice, Progress, ignore
from aecli.runs.folder import newest_run
from aecli.runs.images import choose_images, source_of
from aecli.storage.outputs import check_writable_file, forbid_overwriting_inputs, write_output


@dataclass(frozen=True)
class GridResult:
    """The file, the names of its images, the labels of its rows, and what reading did to the images of the SOURCE.

    What a model keeps is drawn beside its label.
    """

    out: Path
    images: list[str]
    rows: list[str]
    conversions: dict[str, Any] = field(default_factory=dict)


def draw_comparison(config: GridConfig, listen: Listener = ignore) -> GridResult:
    """Draw `n` random images: a row Ground Truth, then one row per model.

    Raises:
        CheckpointError: no model is named, and none has a run.
        AecliError: a model, images or an output can't be used.
    """
    if config.out.suffix.lower() != ".png":
        raise ConfigError(f"--out {config.out}: expected a .png file")
    check_writable_file(config.out, "--out")
    trained = (name for name in registry.names() if _is_autoencoder(name) and newest_run(name, config.runs))
    names = config.models or tuple(trained)
    if not names:
        raise CheckpointError(f"no model has a run under {config.runs}\nhint: train one with: aecli train vae")
    loaded = [load_model(name, config.runs, config.device, config.precision, listen) for name in names]
    images = choose_images(loaded[0].located, config.data, None, listen)
    forbid_overwriting_inputs("--out", [config.out], file_paths(images))
    source = source_of(loaded[0].located, config.data, None)
    chosen, truth, counts = _choose(images, loaded[0], config.n, config.seed, listen)
    for text in counts.notices(source, loaded[0].background):
        listen(Notice(text))
    rows, labels = [("Ground Truth", truth)], _labels(loaded)
    for done, (label, each) in enumerate(zip(labels, loaded, strict=True)):
        listen(Progress("reconstructing", done, len(loaded)))
        has_same_input = _input_of(each) == _input_of(loaded[0])
        inputs = truth if has_same_input else [each.read_image(image).pixels for image in chosen]
        rows.append((f"{label} keeps {each.kept}", [_reconstruct(each, pixels) for pixels in inputs]))
    write_output(config.out, png_bytes(draw_rows(rows)), listen)
    return GridResult(config.out, [image.name for image in chosen], ["Ground Truth", *labels],
                      {source: counts.to_json()})  # fmt: skip


def _is_autoencoder(name: str) -> bool:
    return issubclass(registry.load(name), Autoencoder)


def _input_of(model: LoadedModel) -> tuple[int, str, str]:
    return model.image_size, model.fit, model.background


def _choose(
    images: list[ImageRef], model: LoadedModel, n: int, seed: int, listen: Listener
) -> tuple[list[ImageRef], list[np.ndarray], ConversionCounts]:
    """Return `n` random readable images, their pixels as input for the first model, and what reading did to them."""
    chosen: list[ImageRef] = []
    pixels: list[np.ndarray] = []
    counts = ConversionCounts()
    for index in np.random.default_rng(seed).permutation(len(images)):
        if len(chosen) == n:
            break
        try:
            decoded = model.read_image(images[index])
            counts.add(images[index].name, decoded)
            pixels.append(decoded.pixels)
            chosen.append(images[index])
        except DecodeError as error:
            listen(Notice(f"skipped {error}"))
    if not chosen:
        raise DataError(f"none of the {len(images)} images can be read\nhint: name others with --data")
    if len(chosen) < n:
        listen(Notice(f"drawing {len(chosen)} images: there are no more"))
    return chosen, pixels, counts


def _reconstruct(model: LoadedModel, pixels: np.ndarray) -> np.ndarray:
    """Return the reconstruction of an image, both uint8 (S, S, 3)."""
    reconstruction: np.ndarray = model.reconstruct(pixels.transpose(2, 0, 1)[None])[0].transpose(1, 2, 0)
    return reconstruction


def _labels(models: list[LoadedModel]) -> list[str]:
    """Label each row with its model's class; if that isn't unique, with the run too, or else the path."""
    titles = [each.title for each in models]
    with_run = [f"{each.title} {each.located.label}" for each in models]
    with_path = [f"{each.title} {each.located.checkpoint.parent}" for each in models]
    title_counts, run_counts = Counter(titles), Counter(with_run)
    return [
        title if title_counts[title] == 1 else run if run_counts[run] == 1 else path
        for title, run, path in zip(titles, with_run, with_path, strict=True)
    ]
