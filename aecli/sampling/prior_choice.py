"""Choosing the prior that latents are drawn from: N(0, I), one fitted to the latents, or a flow trained on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from aecli.errors import CheckpointError, ConfigError, DataError, ModelError
from aecli.inference.loaded_model import LoadedModel
from aecli.models.base import Prior
from aecli.progress import Listener, Notice
from aecli.runs import checkpoints
from aecli.runs.folder import RunFolder, list_runs
from aecli.sampling.fitted_prior import FittedPrior
from aecli.sampling.prior_fitting import first_line, fitted_prior

FLOW_STEPS = 50


@dataclass(frozen=True)
class LatentPrior:
    """A distribution over latents of `shape` (without the batch): `name` is normal, gaussian, mixture or flow.

    `fitted` holds the parameters of gaussian and mixture, `flow` the network, which samples in `flow_steps` steps.
    `temperature` multiplies the standard deviations, for a flow that of its noise.
    """

    name: str
    shape: tuple[int, ...]
    temperature: float
    seed: int
    fitted: FittedPrior | None = None
    flow: Prior | None = None
    flow_steps: int = FLOW_STEPS

    def draw(self, indices: Sequence[int]) -> Tensor:
        """Return latents (N, …), float32; each depends on (seed, index) alone, but for rounding that differs with N."""
        if self.fitted is not None:
            scores = [self.fitted.draw(self.name, self.temperature, self.seed, index) for index in indices]
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
    """Return standard normal noise float32 that depends on (seed, index) alone, not on the device that will use it."""
    entropy = np.random.SeedSequence([seed, index])
    return torch.from_numpy(np.random.Generator(np.random.PCG64(entropy)).standard_normal(shape, dtype=np.float32))


def require_prior(loaded: LoadedModel, prior: str) -> None:
    """Raise ModelError if `prior` is N(0, I) and the model was not trained towards it."""
    if prior == "normal" and not loaded.model.prior_is_normal:
        raise ModelError(
            f"{loaded.title} can't be sampled from N(0, I): its training doesn't pull latents towards that, so random "
            "latents decode to noise\nhint: use --prior gaussian or mixture; or flow, after aecli train prior"
        )


def choose_prior(
    loaded: LoadedModel,
    prior: str,
    listen: Listener,
    *,
    runs: Path,
    temperature: float = 1.0,
    seed: int = 0,
    steps: int | None = None,
) -> LatentPrior:
    """Return the prior called `prior`; for `auto` the best that exists, reporting which.

    Flows are looked for under `runs` and beside the model's run; `steps` is how many a flow takes.

    Raises:
        ModelError: N(0, I) for a model that was not trained towards it.
        ConfigError: `steps` without a flow.
        CheckpointError: `flow`, and none was trained on these weights.
        DataError: gaussian or mixture, and the images that they are fitted to aren't available.
    """
    if prior in ("auto", "flow"):
        run = find_flow(loaded, runs)
        if run is not None:
            if prior == "auto":
                listen(Notice(f"sampling from the flow in {run.path}"))
            shape = loaded.model.latent_shape(loaded.image_size)
            flow = _load_flow(run, loaded)
            return LatentPrior("flow", shape, temperature, seed, flow=flow, flow_steps=steps or FLOW_STEPS)
        hint = f"train one: aecli train prior --model {_model_argument(loaded)}"
        if prior == "flow":
            raise CheckpointError(f"--prior flow: none was trained on {loaded.located.checkpoint}\nhint: {hint}")
        if steps is not None:
            raise ConfigError(f"--steps {steps}: only a flow takes steps, and none was trained on these weights\n"
                              f"hint: {hint}")  # fmt: skip
    return choose_fitted_prior(loaded, prior, listen, temperature, seed)


def choose_fitted_prior(
    loaded: LoadedModel, prior: str, listen: Listener, temperature: float = 1.0, seed: int = 0
) -> LatentPrior:
    """Return a normal, gaussian or mixture prior; for `auto` a mixture, or N(0, I) where nothing can be fitted.

    Raises:
        ModelError: N(0, I) for a model that was not trained towards it.
        DataError: the images that a prior is fitted to aren't available.
    """
    require_prior(loaded, prior)
    shape = loaded.model.latent_shape(loaded.image_size)
    normal = LatentPrior("normal", shape, temperature, seed)
    try:
        fitted = fitted_prior(loaded, listen)
    except DataError as error:
        if prior in ("gaussian", "mixture") or not loaded.model.prior_is_normal:
            raise
        listen(Notice(f"sampling from N(0, I), without knowing how far the latents are from it: {first_line(error)}"))
        return normal
    if prior == "normal":
        if fitted.statistics.is_far:
            listen(Notice(warning(fitted)))
        return normal
    if prior == "auto":
        size = len(fitted.mixture.weights)
        what = f"a mixture of {size} Gaussians" if size > 1 else "a Gaussian"
        listen(Notice(f"sampling from {what} fitted to the latents of {fitted.count:,} images"))
    return LatentPrior("mixture" if prior == "auto" else prior, shape, temperature, seed, fitted=fitted)


def warning(fitted: FittedPrior) -> str:
    """Return a notice of how far the latents are from N(0, I), and what to use instead."""
    found = fitted.statistics
    if found.posterior_std is None:
        figure = f"by {found.divergence:.1f} nats per dimension, with a standard deviation of {found.latent_std:.2f}"
    else:
        figure = f"the posterior's standard deviation is {found.posterior_std:.2f} instead of 1"
    return f"the latents are far from N(0, I) ({figure}): such samples are noise; --prior mixture does better"


def find_flow(loaded: LoadedModel, runs: Path) -> RunFolder | None:
    """Return the newest run of a flow that was trained on these weights, under `runs` or beside the model's run."""
    folders = [runs, *([loaded.located.run.path.resolve().parent] if loaded.located.run else [])]
    found = [
        run
        for folder in folders
        for run in list_runs(folder)
        if run.model.exists() and _autoencoder_sha256(run) == loaded.sha256
    ]
    return max(found, key=RunFolder.touched, default=None)


def _model_argument(loaded: LoadedModel) -> str:
    """The MODEL argument that names these weights."""
    located = loaded.located
    path = located.run.path if located.run else located.checkpoint
    return f"{located.named}={path}" if located.named and ":" in located.named else str(path)


def _autoencoder_sha256(run: RunFolder) -> str | None:
    """The SHA-256 of the autoencoder whose latents a run was trained on, or None."""
    try:
        autoencoder = run.read_config()["options"].get("autoencoder")
    except CheckpointError:  # of a run that is damaged
        return None
    return autoencoder.get("sha256") if isinstance(autoencoder, dict) else None


def _load_flow(run: RunFolder, loaded: LoadedModel) -> Prior:
    model, _ = checkpoints.load_model(run.model)
    if not isinstance(model, Prior):
        raise CheckpointError(f"{run.model} holds {type(model).__name__}, not the prior that {run.config} describes")
    return model.to(loaded.placement.device)
