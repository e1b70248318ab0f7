"""Trained weights that a new run begins from: `--init MODEL`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from aecli.errors import CheckpointError, message_of
from aecli.models import registry
from aecli.runs import checkpoints
from aecli.runs.folder import RunFolder, list_runs, locate, resolved
from aecli.runs.hub import PREFIX as HUB


@dataclass(frozen=True)
class InitialWeights:
    """What `--init` names.

    `given` is its text, a path made absolute. `document` is what the weights say of themselves: model, options, image
    size. Where they are gone, `path` is None, and that of the run which began from them stands in: it can continue.
    """

    given: str
    path: Path | None
    document: Mapping[str, Any]

    @cached_property
    def sha256(self) -> str | None:
        """SHA-256 of the file; None where it is gone."""
        return None if self.path is None else checkpoints.fingerprint(self.path)

    @property
    def latent_scaling(self) -> Any:
        """How a diffusion model's latents are made of theirs, as JSON; None where they say nothing of it."""
        return self.document.get("latent_scaling")

    def record(self) -> dict[str, Any]:
        """Return its record in config.json."""
        path = None if self.path is None else resolved(self.path)
        scaling = {} if self.latent_scaling is None else {"latent_scaling": self.latent_scaling}
        return {"given": self.given, "path": path, "sha256": self.sha256, **scaling}

    def has_changed_since(self, record: Mapping[str, Any]) -> bool:
        """Whether the weights that are there now are others than those of a run's `record`."""
        return self.sha256 is not None and self.sha256 != record.get("sha256")


def find_initial_weights(given: str, model: str, runs: Path, out: Path | None) -> InitialWeights:
    """Find the weights that `--init` names for a run of `model` in `out`, or else under `runs`.

    Raises:
        CheckpointError: they are another model's, damaged, or gone without a run that began from them.
    """
    text = absolute(given)
    try:
        path = locate(given, runs, "--init").checkpoint
    except CheckpointError:
        if (document := _begun_from(text, model, runs, out)) is None:
            raise
        return InitialWeights(text, None, document)
    document = checkpoints.describe_weights(path)
    if document.get("model") != model:
        raise CheckpointError(f"--init {given}: {path} holds a model {message_of(document.get('model'))}, not {model}")
    if not isinstance(document.get("options"), dict):
        raise CheckpointError(f"{path}: damaged metadata: invalid fields: options")
    return InitialWeights(text, path, document)


def absolute(given: str) -> str:
    """Return what `--init` names, with its path made absolute."""
    if registry.is_model_name(given) or given.startswith(HUB):
        return given
    named, equals, path = given.partition("=")
    return f"{named}={os.path.realpath(path)}" if equals and ":" in named else os.path.realpath(given)


def _begun_from(text: str, model: str, runs: Path, out: Path | None) -> dict[str, Any] | None:
    """Return the document of the last run that began from weights of that name, as far as its config.json has it."""
    folders = list_runs(runs) if out is None else [RunFolder(out)]
    for folder in reversed([each for each in folders if each.is_ours()]):
        config = folder.read_config()
        options = config["options"]
        record = options.get("init")
        if isinstance(record, dict) and record.get("given") == text and config["model"]["name"] == model:
            kept = {key: options[key] for key in ("image_size", "fit", "background")}
            if "latent_scaling" in record:
                kept["latent_scaling"] = record["latent_scaling"]
            return {"model": model, "options": config["model"]["options"], **kept}
    return None
