"""Random images and what each model makes of them, in labelled rows: the report's figure."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aecli.configs import GridConfig
from aecli.data.decode import decode, fit
from aecli.errors import CheckpointError
from aecli.figures.grid import draw_rows, png_bytes
from aecli.files import write_bytes
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
    names = config.models or tuple(name for name in registry.names() if newest_run(name, config.runs))
    if not names:
        raise CheckpointError(f"no registry model has a run under {config.runs}; train one first: aecli train vae")
    loaded = [load_model(name, config.runs, config.device, config.precision) for name in names]
    images = choose_images(loaded[0].located, config.data, None)
    if len(images) < config.n:
        listen(Notice(f"drawing {len(images)} images: there are no more than that"))
    chosen = np.random.default_rng(config.seed).permutation(len(images))[: config.n]
    originals = [decode(images[index]) for index in chosen]
    # One picture compares models only if all see the same pixels; a model of another size gets them in its own.
    size, how = loaded[0].image_size, loaded[0].fit
    rows = [("Ground Truth", [fit(pixels, size, how) for pixels in originals])]
    for done, (label, each) in enumerate(zip(_labels(loaded), loaded, strict=True)):
        listen(Progress("reconstructing", done, len(loaded)))
        batch = np.stack([fit(pixels, each.image_size, each.fit).transpose(2, 0, 1) for pixels in originals])
        rows.append((label, list(each.reconstruct(batch).transpose(0, 2, 3, 1))))
    if config.out.exists():
        listen(Notice(f"replacing {config.out}"))
    write_bytes(config.out, png_bytes(draw_rows(rows)))
    return GridResult(config.out, [images[index].name for index in chosen], [label for label, _ in rows])


def _labels(models: list[LoadedModel]) -> list[str]:
    """Call each row by its model's class, and by its run too where two are of one class."""
    counts = Counter(each.title for each in models)
    return [each.title if counts[each.title] == 1 else f"{each.title} {each.located.label}" for each in models]
