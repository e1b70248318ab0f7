"""Choosing the prior of latents: N(0, I), one fitted to the latents, or one trained on them."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from aecli.configs import InterpolateConfig, SampleConfig, TraverseConfig
from aecli.configs.checks import TRAINED_PRIORS
from aecli.diagnosis import collapsed, far_from_normal
from aecli.errors import CheckpointError, ConfigError, DataError, ModelError, name_examples
from aecli.inference.loaded_model import LoadedModel, load_model
from aecli.models import registry
from aecli.models.base import Prior
from aecli.progress import Listener, Notice
from aecli.runs import checkpoints
from aecli.runs.folder import RunFolder, list_runs
from aecli.runtime.distributed import Distributed
from aecli.sampling.latent_prior import FLOW_STEPS, LatentPrior
from aecli.sampling.prior_fitting import fitted_prior
from aecli.sampling.prior_scores import PriorScores, can_be_measured, measured_priors
from aecli.storage.strict_json import is_number


def require_prior(loaded: LoadedModel, prior: str) -> None:
    """Raise ModelError for N(0, I) if the model was not trained towards it, and for what needs codes if it has none."""
    if prior == "autoregressive" and loaded.model.code_levels is None:
        raise ModelError(
            f"{loaded.title} has no codes, which --prior autoregressive draws\nhint: use --prior auto or flow"
        )
    if prior == "normal" and not loaded.model.prior_is_normal:
        raise ModelError(
            f"{loaded.title} can't be sampled from N(0, I): not trained towards it, it would give noise\n"
            f"hint: use --prior gaussian or mixture; or {_trained_kind(loaded)}, after aecli train prior"
        )


def open_prior(
    config: SampleConfig | InterpolateConfig | TraverseConfig,
    distributed: Distributed,
    check_output: Callable[[], None],
    choose: Callable[[LoadedModel], LatentPrior],
    listen: Listener,
) -> tuple[LoadedModel, LatentPrior]:
    """Load a command's model and choose its prior, in the main process first; the output is checked before that.

    Raises:
        AecliError: the model, prior or output can't be used.
    """
    loaded = load_model(config.model, config.runs, config.device, config.precision, listen)
    require_prior(loaded, config.prior)
    if distributed.is_main_process:
        check_output()
        if finding := collapsed(_recorded_kl(loaded.located.checkpoint), loaded.model.options):
            listen(Notice(finding.text))
    return loaded, distributed.main_process_first(lambda: choose(loaded))


def _recorded_kl(checkpoint: Path) -> float | None:
    """Return the KL of training that a checkpoint records, in nats a number, or None."""
    metrics = (checkpoints.read_document(checkpoint) or {}).get("metrics")
    kl = metrics.get("train_kl") if isinstance(metrics, dict) else None
    return kl if is_number(kl) else None


def choose_prior(loaded: LoadedModel, config: SampleConfig, listen: Listener) -> LatentPrior:
    """Return the prior that `config` names; for `auto` the best by measurement, with a notice of the figures.

    Where that can't be, because the run has too few validation images, `auto` is a trained prior if there is one, or a
    mixture; with `data` it is a mixture.

    A trained prior's run is found under `config.runs` or beside the model's run.

    Raises:
        ModelError: N(0, I) for a model that was not trained towards it, or `autoregressive` for one without codes.
        ConfigError: `steps` without a flow, `classes` that no prior learned, or `guidance` with nothing to guide.
        CheckpointError: `flow` or `autoregressive`, but none was trained on these weights.
        DataError: gaussian or mixture, but the images to fit them to aren't available.
    """
    if config.data is not None:
        return choose_fitted_prior(loaded, config.prior, listen, config.temperature, config.seed, config.data)
    require_prior(loaded, config.prior)
    needs_flow = config.steps is not None or (config.guidance != 1 and not config.classes)
    wanted = "flow" if config.prior == "auto" and needs_flow else config.prior
    run = find_trained(loaded, config.runs, wanted, bool(config.classes))
    if run is None and (wanted in TRAINED_PRIORS or config.classes):
        raise _missing(loaded, config)
    is_any = wanted == "auto" and not config.classes
    if is_any and (measured := _best_prior(loaded, run, listen)) is not None:
        return replace(measured, temperature=config.temperature, seed=config.seed)
    if run is not None:
        prior = _trained_prior(run, loaded)
        if config.guidance != 1 and not config.classes and not (prior.trained and prior.trained.contains_worse):
            raise ConfigError(f"--guidance {config.guidance:g}: expected a --class, or a flow that began as a Gaussian "
                              f"unlike {run.path}\nhint: train one with -o base=gaussian")  # fmt: skip
        if config.prior == "auto":
            listen(Notice(f"sampling from the {prior.name} prior in {run.path}"))
        return replace(prior, temperature=config.temperature, seed=config.seed, flow_steps=config.steps or FLOW_STEPS,
                       labels=class_numbers(run, config.classes), guidance=config.guidance)  # fmt: skip
    return choose_fitted_prior(loaded, config.prior, listen, config.temperature, config.seed)


def _missing(loaded: LoadedModel, config: SampleConfig) -> CheckpointError | ConfigError:
    """Return the error of a trained prior that is asked for and not there."""
    hint = f"train one with: aecli train prior --model {_model_argument(loaded)}"
    if config.prior == "flow" and _trained_kind(loaded) != "flow":
        hint = f"it has codes: use --prior {_trained_kind(loaded)}, after aecli train prior"
    if config.classes:
        return ConfigError(f"--class {config.classes[0]}: no prior was trained on these weights, to know of classes\n"
                           f"hint: {hint} --labels folders")  # fmt: skip
    if config.prior == "auto":
        by_guidance = config.steps is None
        option, value = ("--guidance", f"{config.guidance:g}") if by_guidance else ("--steps", str(config.steps))
        return ConfigError(f"{option} {value}: for a flow alone, but none was trained on these weights\n"
                           f"hint: {hint if _trained_kind(loaded) == 'flow' else f'leave {option} out'}")  # fmt: skip
    return CheckpointError(f"--prior {config.prior}: none was trained on {loaded.located.checkpoint}\nhint: {hint}")


def _trained_kind(loaded: LoadedModel) -> str:
    """Return the kind of prior that `aecli train prior` trains for a model."""
    return "flow" if loaded.model.code_levels is None else "autoregressive"


def _to_codes(loaded: LoadedModel) -> Callable[[Tensor], Tensor] | None:
    return None if loaded.model.code_levels is None else loaded.codes


def _best_prior(loaded: LoadedModel, trained_run: RunFolder | None, listen: Listener) -> LatentPrior | None:
    """Return the prior whose samples are nearest to the run's validation images, with a notice of the figures.

    None where there are too few of these, or nothing can be fitted.
    """
    if not can_be_measured(loaded):
        return None
    try:
        fitted = fitted_prior(loaded, listen)
    except DataError:
        return None
    shape = loaded.model.latent_shape(loaded.image_size)
    to_codes = _to_codes(loaded)
    candidates = [LatentPrior(name, shape, 1.0, 0, fitted, to_codes=to_codes) for name in ("gaussian", "mixture")]
    if loaded.model.prior_is_normal:
        candidates.append(LatentPrior("normal", shape, 1.0, 0, to_codes=to_codes))
    if trained_run is not None:
        candidates.append(_trained_prior(trained_run, loaded))
    scores = measured_priors(loaded, candidates, listen)
    if scores is None:
        return None
    listen(Notice(_told(scores)))
    return next(each for each in candidates if each.name == scores.best)


def _told(scores: PriorScores) -> str:
    ordered = sorted(scores.distances.items(), key=lambda each: each[1])
    figures = ", ".join(f"{name} {distance:.4f}" for name, distance in ordered)
    return f"sampling from {scores.best}, nearest to {scores.images:,} validation images by kd-alex: {figures}"


def choose_fitted_prior(
    loaded: LoadedModel,
    prior: str,
    listen: Listener,
    temperature: float = 1.0,
    seed: int = 0,
    data: str | None = None,
) -> LatentPrior:
    """Return a normal, gaussian or mixture prior; for `auto` a mixture, or N(0, I) if nothing can be fitted.

    It is fitted to the images of `data`, or without it to those that the model was trained on.

    Raises:
        ModelError: N(0, I) for a model that was not trained towards it.
        DataError: the images to fit a prior to aren't available.
    """
    require_prior(loaded, prior)
    shape = loaded.model.latent_shape(loaded.image_size)
    to_codes = _to_codes(loaded)
    normal = LatentPrior("normal", shape, temperature, seed, to_codes=to_codes)
    try:
        fitted = fitted_prior(loaded, listen, data)
    except DataError as error:
        if data is not None or prior in ("gaussian", "mixture") or not loaded.model.prior_is_normal:
            raise
        listen(Notice(f"sampling from N(0, I); how far the latents are from it is unknown: {error.headline}"))
        return normal
    if prior == "normal":
        found = fitted.statistics
        if finding := far_from_normal(found.divergence, found.posterior_std, found.latent_std):
            listen(Notice(finding.text))
        return normal
    if prior == "auto":
        size = len(fitted.mixture.weights)
        what = f"a mixture of {size} Gaussians" if size > 1 else "a Gaussian"
        listen(Notice(f"sampling from {what} fitted to the latents of {fitted.count:,} images"))
    return LatentPrior("mixture" if prior == "auto" else prior, shape, temperature, seed, fitted, to_codes=to_codes)


def class_numbers(run: RunFolder, names: Sequence[str]) -> tuple[int, ...]:
    """Return the numbers of classes, by their names, in a prior's run.

    Raises:
        ConfigError: the prior learned no classes, or none of that name; the message says which are near.
    """
    known = _classes(run)
    if names and not known:
        raise ConfigError(f"--class {names[0]}: the prior in {run.path} learned no classes\n"
                          "hint: train one with --labels folders")  # fmt: skip
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            told = f"did you mean {' or '.join(near)}?" if near else f"there are {name_examples(known, len(known))}"
            raise ConfigError(f"--class {name}: the prior in {run.path} learned none of that name\nhint: {told}")
    return tuple(known.index(name) for name in names)


def choose_walk_prior(loaded: LoadedModel, config: InterpolateConfig | TraverseConfig, listen: Listener) -> LatentPrior:
    """Return the prior of a path: as `choose_fitted_prior`, but between images a flow goes first.

    Raises:
        CheckpointError: `flow`, but none was trained on these weights.
        ModelError, DataError: as `choose_fitted_prior`.
    """
    if isinstance(config, InterpolateConfig) and config.prior in ("auto", "flow"):
        run = find_trained(loaded, config.runs, "flow")
        if run is not None:
            if config.prior == "auto":
                listen(Notice(f"along the noise of the flow prior in {run.path}"))
            return _trained_prior(run, loaded)
        if config.prior == "flow":
            raise _missing(loaded, SampleConfig(config.model, "flow"))
    return choose_fitted_prior(loaded, config.prior, listen)


def find_trained(loaded: LoadedModel, runs: Path, prior: str, has_classes: bool = False) -> RunFolder | None:
    """Return the newest run of a prior of that name, or of any for `auto`, that was trained on these weights.

    It lies under `runs` or beside the model's run. With `has_classes` it is the newest that learned any, where there
    is one.
    """
    if prior not in ("auto", *TRAINED_PRIORS):
        return None
    folders = [runs, *([loaded.located.run.path.resolve().parent] if loaded.located.run else [])]
    matching = [
        run
        for folder in folders
        for run in list_runs(folder)
        if run.model.exists() and _autoencoder_sha256(run) == loaded.sha256
    ]
    matching = [run for run in matching if prior == "auto" or prior_kind(run) == prior]
    matching = [run for run in matching if has_classes and _classes(run)] or matching
    return max(matching, key=RunFolder.touched, default=None)


def _classes(run: RunFolder) -> list[str]:
    """Return the names of the classes that a prior's run learned, in the order of their numbers."""
    classes: list[str] = (run.read_config()["options"].get("options") or {}).get("classes") or []
    return classes


def _model_argument(loaded: LoadedModel) -> str:
    """Return the MODEL argument that names these weights."""
    located = loaded.located
    path = located.run.path if located.run else located.checkpoint
    return f"{located.named}={path}" if located.named and ":" in located.named else str(path)


def _autoencoder_sha256(run: RunFolder) -> str | None:
    """Return the SHA-256 of the autoencoder that a prior's run was trained on, or None."""
    try:
        autoencoder = run.read_config()["options"].get("autoencoder")
    except CheckpointError:  # a damaged run is not the one
        return None
    return autoencoder.get("sha256") if isinstance(autoencoder, dict) else None


def prior_kind(run: RunFolder) -> str:
    """Return the name, among those of `--prior`, of what `aecli train prior` trained in a run."""
    document = checkpoints.read_document(run.model) or {}
    return "autoregressive" if document.get("model") == registry.PRIOR_OF_CODES else "flow"


def _trained_prior(run: RunFolder, loaded: LoadedModel) -> LatentPrior:
    model, _ = checkpoints.load_model(run.model)
    if not isinstance(model, Prior):
        raise CheckpointError(f"{run.model} holds {type(model).__name__}, not the prior that {run.config} describes")
    shape = loaded.model.latent_shape(loaded.image_size)
    if not loaded.has_own_input:  # the size that it was trained at
        shape = (shape[0], *[model.options.side] * (len(shape) - 1))
    on_device, fingerprint = model.to(loaded.placement.device), checkpoints.fingerprint(run.model)
    return LatentPrior(
        prior_kind(run), shape, 1.0, 0, trained=on_device, fingerprint=fingerprint, to_codes=_to_codes(loaded)
    )
