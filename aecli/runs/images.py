"""The images that a run was trained on, or that are given in their place."""

from collections.abc import Sequence
from pathlib import Path

from aecli.data.image_ref import ImageRef, split_indices
from aecli.data.inventory import list_source
from aecli.data.sources.registry import is_gone, list_images, require_source
from aecli.data.sources.shards import is_stream
from aecli.errors import ConfigError, DataError
from aecli.progress import Listener, ignore
from aecli.runs.data_changes import as_recorded
from aecli.runs.folder import Located, RunFolder


def run_images(
    run: RunFolder,
    split: str,
    listen: Listener = ignore,
    outputs: Sequence[Path] = (),
    hint: str = "put them back, or name them with --data",
) -> list[ImageRef]:
    """List the images that a run trained on, validated on, or both (`train`, `val`, `all`); see `list_images`.

    `hint` says what to do where they are gone.

    Raises:
        CheckpointError: the run's config.json is damaged.
        DataError: the images can't be listed any more, or are gone.
    """
    recorded = run.read_config()
    options = recorded["options"]
    data, val_data = options["data"], options["val_data"]
    if val_data is None and is_stream(data) and split == "val":
        raise DataError(f"{run.path} was trained on a stream, without validation images\nhint: name some with --data")

    def listed(key: str, verb: str) -> list[ImageRef]:
        if is_gone(options[key]):
            raise DataError(f"{run.path} {verb} {options[key]}, which is gone\nhint: {hint}")
        return as_recorded(run, recorded, key, list_source(options[key], listen, outputs)).images or []

    if val_data is None:
        images = listed("data", "was trained on")
        return images if is_stream(data) else select_split(images, split, options["val_fraction"])
    trained_on = listed("data", "was trained on") if split != "val" else []
    return trained_on + (listed("val_data", "was validated on") if split != "train" else [])


def source_of(located: Located, data: str | None, split: str | None) -> str:
    """Return the SOURCE of the images that `choose_images` lists: where there are two, that of the training images."""
    if data is not None or located.run is None:
        return data or str(located.checkpoint)
    options = located.run.read_config()["options"]
    return str(options["data"] if options["val_data"] is None or split in ("train", "all") else options["val_data"])


def select_split(images: Sequence[ImageRef], split: str, val_fraction: float) -> list[ImageRef]:
    """Return the images of `split` by the rule that training splits by."""
    if split == "all":
        return list(images)
    train, val = split_indices(images, val_fraction)
    return [images[index] for index in (train if split == "train" else val)]


def choose_images(
    located: Located, data: str | None, split: str | None, listen: Listener = ignore, outputs: Sequence[Path] = ()
) -> list[ImageRef]:
    """List the images of `data`, or of the run where it is None: its validation images unless `split` says otherwise.

    `listen` and `outputs` are as for `list_images`.

    Raises:
        ConfigError: no data was given, or a split is asked for, and there is no run to take it from.
        DataError: the images can't be listed, or none is in that split.
    """
    if data is None:
        if located.run is None:
            raise ConfigError(f"--data is required: {located.checkpoint} is in no run folder")
        images = run_images(located.run, split or "val", listen, outputs)
        if not images:
            raise DataError(f"{located.run.path} has no {split or 'validation'} images\nhint: name some with --data")
        return images
    require_source(data, "--data")
    if split in (None, "all"):
        return list_images(data, listen, outputs)
    if located.run is None:
        raise ConfigError(f"--split {split}: {located.checkpoint} is in no run folder, so its split is unknown")
    options = located.run.read_config()["options"]
    if options["val_data"] is not None:
        raise ConfigError(f"--split {split}: the run validated on {options['val_data']}, and didn't split its images")
    images = select_split(list_images(data, listen, outputs), split, options["val_fraction"])
    if not images:
        raise DataError(f"{data}: no image is in the split {split!r}")
    return images
