"""The registered models with their costs, the runs found, and how models would run on this machine."""

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from aecli.configs import ModelsConfig
from aecli.errors import AecliError, CheckpointError
from aecli.models import registry
from aecli.models.base import Kept, kept, latent_shape
from aecli.models.flops import forward_flops
from aecli.runs import checkpoints
from aecli.runs.folder import RunFolder, list_runs
from aecli.runtime.device import place
from aecli.storage.strict_json import is_count, is_number


@dataclass(frozen=True)
class ModelFacts:
    """A registered model at its default options; `error` instead of figures where it can't be loaded."""

    name: str
    target: str
    parameters: int | None = None
    latent_shape: tuple[int, ...] | None = None
    gflop: float | None = None
    kept: Kept | None = None  # None also for a prior
    error: str | None = None


@dataclass(frozen=True)
class RunFacts:
    """A run folder, with the figures of its best epoch, if any; `error` says what is damaged."""

    path: str
    model: str
    options: dict[str, Any]
    image_size: int
    epochs: int
    best_epoch: int | None
    val_psnr: float | None
    val_ssim: float | None
    touched: str  # when it was last trained, ISO 8601 with the zone of this machine
    kept: Kept | None = None  # None for a prior, or a model that isn't installed
    error: str | None = None


@dataclass(frozen=True)
class ModelsReport:
    """Models at `image_size`, runs, and the device, precision and memory format for training and inference here."""

    image_size: int
    models: list[ModelFacts]
    runs: list[RunFacts]
    training: dict[str, str]
    inference: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        document = asdict(self)
        found: list[ModelFacts | RunFacts] = [*self.models, *self.runs]
        for facts, each in zip([*document["models"], *document["runs"]], found, strict=True):
            facts["kept"] = each.kept.to_json() if each.kept else None
        return document


def list_models(config: ModelsConfig) -> ModelsReport:
    """Describe the registered models, the runs under `config.runs`, and this machine.

    Raises:
        ConfigError: the device or precision is not available.
    """
    return ModelsReport(
        image_size=config.image_size,
        models=[describe_model(name, target, config.image_size) for name, target in registry.targets().items()],
        runs=[describe_run(run) for run in reversed(list_runs(config.runs))],
        training=place(config.device, config.precision, training=True).describe(),
        inference=place(config.device, config.precision).describe(),
    )


def describe_model(name: str, target: str, image_size: int) -> ModelFacts:
    """Build a registered model on the meta device; count parameters and floating-point operations of a forward pass."""
    try:
        options = registry.resolve_options(name, {})
        model = registry.build_on_meta(name, options)
    except AecliError as error:
        return ModelFacts(name, target, error=str(error))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return ModelFacts(name, target, parameters, latent_shape(model, image_size), forward_flops(model, image_size) / 1e9,
                      kept(model, image_size))  # fmt: skip


def describe_run(run: RunFolder) -> RunFacts:
    """Read a run's config and the documents of its checkpoints, as far as there are any; raises CheckpointError."""
    config = run.read_config()
    error = None
    documents: dict[Path, dict[str, Any]] = {run.model: {}, run.last: {}}
    try:
        for file in documents:
            documents[file] = (checkpoints.read_document(file) if file.exists() else None) or {}
    except CheckpointError as damage:
        error = str(damage)
    document, last = documents.values()
    figures = document["metrics"] if isinstance(document.get("metrics"), dict) else {}
    return RunFacts(
        path=str(run.path),
        model=config["model"]["name"],
        options=config["model"]["options"],
        image_size=config["options"]["image_size"],
        epochs=epochs if is_count(epochs := last.get("epoch")) else 0,
        best_epoch=best if is_count(best := document.get("epoch")) else None,
        val_psnr=psnr if is_number(psnr := figures.get("val_psnr")) else None,
        val_ssim=ssim if is_number(ssim := figures.get("val_ssim")) else None,
        touched=datetime.fromtimestamp(run.touched()).astimezone().isoformat(timespec="seconds"),
        kept=_kept_by(config),
        error=error,
    )


def _kept_by(config: dict[str, Any]) -> Kept | None:
    """Of aecli's own models: no class is imported because a file names it, and plug-ins may fail in their own ways."""
    name, options = config["model"]["name"], config["model"]["options"]
    image_size = config["options"]["image_size"]
    if not registry.targets().get(name, "").startswith("aecli.") or not is_count(image_size):
        return None
    try:
        model = registry.build_on_meta(name, registry.resolve_options(name, options))
    except AecliError:  # options of another version
        return None
    return kept(model, image_size)
