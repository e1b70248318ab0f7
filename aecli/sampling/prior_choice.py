"""Choosing the prior of latents: N(0, I), one fitted to the latents, or a flow trained on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aecli.configs import InterpolateConfig, SampleConfig, TraverseConfig
from aecli.diagnosis import collapsed, far_from_normal
from aecli.errors import CheckpointError, ConfigError, DataError, ModelError
from aecli.inference.loaded_model import LoadedModel, load_model
from aecli.models.base import Prior
from aecli.progress import Listener, Notice
from aecli.runs import checkpoints
from aecli.runs.folder import RunFolder, list_runs
from aecli.runtime.distributed import Distributed
from aecli.sampling.fitted_prior import FittedPrior
from aecli.sampling.prior_fitting import fitted_prior
from aecli.storage.strict_json import is_number

FLOW_STEPS = 50


@dataclass(frozen=True)
class LatentPrior:
    """A distribution over latents of `shape` (without the batch): `name` is normal, gaussian, mixture or flow.

    `fitted` is set for gaussian and mixture, `flow` for a flow, which samples in `flow_steps` steps. `temperature`
    multiplies the standard deviations, for a flow those of its noise.
    """

    name: str
    shape: tuple[int, ...]
    temperature: float
    seed: int
    fitted: FittedPrior | None = None
    flow: Prior | None = None
    flow_steps: int = FLOW_STEPS

    def sample(self, indices: Sequence[int]) -> Tensor:
        """Return latents float32 (N, …); each depends only on (seed, index), up to rounding, which depends on N."""
        if self.fitted is not None:
            scores = [self.fitted.sample(self.name, self.temperature, self.seed, index) for index in indices]
            return torch.from_numpy(self.fitted.unwhiten(np.stack(scores))).reshape(-1, *self.shape)
        flow = self.flow
        shape = self.shape if flow is None else flow.example_shape(0)
        noise = torch.stack([self.temperature * sample_noise(shape, self.seed, index) for index in indices])
        if flow is None:
            return noise
        with torch.inference_mode():
            examples = flow.sample(noise.to(next(flow.parameters()).device), self.flow_steps)
            return flow.unwhiten(examples).float().cpu().reshape(-1, *self.shape)


def sample_noise(shape: Sequence[int], seed: int, index: int) -> Tensor:
    """Return standard normal noise, float32, that depends only on (seed, index), not on the device."""
    entropy = np.random.SeedSequence([seed, index])
    return torch.from_numpy(np.random.Generator(np.random.PCG64(entropy)).standard_normal(shape, dtype=np.float32))


def require_prior(loaded: LoadedModel, prior: str) -> None:
    """Raise ModelError if `prior` is N(0, I) and the model was not trained towards it."""
    if prior == "normal" and not loaded.model.prior_is_normal:
        raise ModelError(
            f"{loaded.title} can't be sampled from N(0, I): not trained towards it, it would give noise\n"
            "hint: use --prior gaussian or mixture; or flow, after aecli train prior"
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
    """Return the prior that `config` names; for `auto` the best available, with a notice which.

    A flow's run is found under `config.runs` or beside the model's run.

    Raises:
        ModelError: N(0, I) for a model that was not trained towards it.
        ConfigError: `steps` without a flow.
        CheckpointError: `flow`, but none was trained on these weights.
        DataError: gaussian or mixture, but the images to fit them to aren't available.
    """
    if config.prior in ("auto", "flow"):
        run = find_flow(loaded, config.runs)
        if run is not None:
            if config.prior == "auto":
                listen(Notice(f"sampling from the flow in {run.path}"))
            shape, flow = loaded.model.latent_shape(loaded.image_size), _load_flow(run, loaded)
            steps = config.steps or FLOW_STEPS
            return LatentPrior("flow", shape, config.temperature, config.seed, flow=flow, flow_steps=steps)
        hint = f"train one with: aecli train prior --model {_model_argument(loaded)}"
        if config.prior == "flow":
            raise CheckpointError(f"--prior flow: none was trained on {loaded.located.checkpoint}\nhint: {hint}")
        if config.steps is not None:
            raise ConfigError(f"--steps {config.steps}: only a flow has steps, but none was trained on these weights\n"
                              f"hint: {hint}")  # fmt: skip
    return choose_fitted_prior(loaded, config.prior, listen, config.temperature, config.seed)


def choose_fitted_prior(
    loaded: LoadedModel, prior: str, listen: Listener, temperature: float = 1.0, seed: int = 0
) -> LatentPrior:
    """Return a normal, gaussian or mixture prior; for `auto` a mixture, or N(0, I) if nothing can be fitted.

    Raises:
        ModelError: N(0, I) for a model that was not trained towards it.
        DataError: the images to fit a prior to aren't available.
    """
    require_prior(loaded, prior)
    shape = loaded.model.latent_shape(loaded.image_size)
    normal = LatentPrior("normal", shape, temperature, seed)
    try:
        fitted = fitted_prior(loaded, listen)
    except DataError as error:
        if prior in ("gaussian", "mixture") or not loaded.model.prior_is_normal:
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
    return LatentPrior("mixture" if prior == "auto" else prior, shape, temperature, seed, fitted=fitted)


def find_flow(loaded: LoadedModel, runs: Path) -> RunFolder | None:
    """Return the newest run of a flow that was trained on these weights, under `runs` or beside the model's run."""
    folders = [runs, *([loaded.located.run.path.resolve().parent] if loaded.located.run else [])]
    matching = [
        run
        for folder in folders
        for run in list_runs(folder)
        if run.model.exists() and _autoencoder_sha256(run) == loaded.sha256
    ]
    return max(matching, key=RunFolder.touched, default=None)


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


def _load_flow(run: RunFolder, loaded: LoadedModel) -> Prior:
    model, _ = checkpoints.load_model(run.model)
    if not isinstance(model, Prior):
        raise CheckpointError(f"{run.model} holds {type(model).__name__}, not the prior that {run.config} describes")
    return model.to(loaded.placement.device)
