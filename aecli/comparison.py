"""Random images and what each model makes of them, in labelled rows: the report's figure."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aecli.configs import GridConfig
from aecli.data.decode import decode_fitted
from aecli.errors import CheckpointError, ConfigError
from aecli.figures.grid import draw_rows, png_bytes
from aecli.files import claim_file, write_bytes
from aecli.inference import LoadedModel, choose_images, load_model
from aecli.models import registry
from aecli.progress import Listener, Notice, Progress, ignore
from aecli.runs import newest_run


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
    if claim_file(config.out, "--out"):
        listen(Notice(f"replacing {config.out}"))
    names = config.models or tuple(name for name in registry.names() if newest_run(name, config.runs))
    if not names:
        raise CheckpointError(f"no registry model has a run under {config.runs}; train one first: aecli train vae")
    loaded = [load_model(name, config.runs, config.device, config.precision) for name in names]
    images = choose_images(loaded[0].located, config.data, None)
    if len(images) < config.n:
        listen(Notice(f"drawing {len(images)} images: there are no more than that"))
    chosen = np.random.default_rng(config.seed).permutation(len(images))[: config.n]
    shown = [images[index] for index in chosen]
    rows = [("Ground Truth", [decode_fitted(image, loaded[0].image_size, loaded[0].fit) for image in shown])]
    for done, (label, each) in enumerate(zip(_labels(loaded), loaded, strict=True)):
        listen(Progress("reconstructing", done, len(loaded)))
        batch = np.stack([decode_fitted(image, each.image_size, each.fit).transpose(2, 0, 1) for image in shown])
        rows.append((label, list(each.reconstruct(batch).transpose(0, 2, 3, 1))))
    write_bytes(config.out, png_bytes(draw_rows(rows)))
    return GridResult(config.out, [image.name for image in shown], [label for label, _ in rows])


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
