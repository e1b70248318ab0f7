"""Which prior a model is sampled from: N(0, I), one fitted to its latents, or one trained on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aecli.configs import SampleConfig
from aecli.errors import AecliError, CheckpointError, ConfigError, DataError, ModelError
from aecli.inference.loaded_model import LoadedModel
from aecli.models.base import Prior
from aecli.progress import Listener, Notice
from aecli.runs import checkpoints
from aecli.runs.folder import RunFolder, list_runs
from aecli.sampling.fitted_prior import FittedPrior
from aecli.sampling.prior_fitting import fitted_prior

FLOW_STEPS = 50


@dataclass(frozen=True)
class LatentPrior:
    """What latents are drawn from: its `name`, and what that is made of where it isn't N(0, I) itself."""

    name: str
    shape: tuple[int, ...]  # of one latent
    temperature: float
    seed: int
    fitted: FittedPrior | None = None
    flow: Prior | None = None
    steps: int = FLOW_STEPS

    def draw(self, indices: Sequence[int]) -> Tensor:
        """Return latents (N, …), each depending on (seed, index) alone, but for rounding that comes with N."""
        if self.fitted is not None:
            scores = [self.fitted.draw(self.name, self.temperature, self.seed, index) for index in indices]
            return torch.from_numpy(self.fitted.expand(np.stack(scores))).reshape(-1, *self.shape)
        flow = self.flow
        shape = self.shape if flow is None else flow.example_shape(0)
        noise = torch.stack([self.temperature * sample_noise(shape, self.seed, index) for index in indices])
        if flow is None:
            return noise
        with torch.inference_mode():
            examples = flow.sample(noise.to(next(flow.parameters()).device), self.steps)
            return flow.expand(examples).float().cpu().reshape(-1, *self.shape)


def sample_noise(shape: Sequence[int], seed: int, index: int) -> Tensor:
    """Return standard normal noise float32 that depends on (seed, index) alone, on whatever device it will be used."""
    entropy = np.random.SeedSequence([seed, index])
    return torch.from_numpy(np.random.Generator(np.random.PCG64(entropy)).standard_normal(shape, dtype=np.float32))


def require_prior(loaded: LoadedModel, prior: str) -> None:
    """Raise ModelError where N(0, I) is asked for, of a model that was never trained towards it."""
    if prior == "normal" and not loaded.model.prior_is_normal:
        raise ModelError(
            f"{loaded.title} can't be sampled from N(0, I): nothing in its training brings its latents near that, "
            "so random ones decode to noise\nuse --prior gaussian, mixture or, after aecli train prior, flow"
        )


def choose_prior(loaded: LoadedModel, config: SampleConfig, listen: Listener) -> LatentPrior:
    """Return the prior that `config` names; of `auto`, the best that is there, and say which.

    Raises:
        ModelError: N(0, I) for a model that was never trained towards it.
        CheckpointError: `flow` where none was trained on these weights.
        DataError: a fitted one where the images that it is fitted to can't be had.
    """
    shape = loaded.model.latent_shape(loaded.image_size)
    drawn = (shape, config.temperature, config.seed)
    require_prior(loaded, config.prior)
    if config.prior in ("auto", "flow") and not (config.interpolate or config.traverse):
        run = find_flow(loaded, config)
        if run is not None:
            flow = _load_flow(run, loaded)
            if config.prior == "auto":
                listen(Notice(f"sampling from the flow in {run.path}"))
            return LatentPrior("flow", *drawn, flow=flow, steps=config.steps or FLOW_STEPS)
        if config.prior == "flow":
            raise CheckpointError(
                f"no prior was trained on the weights in {loaded.located.checkpoint}; train one with: "
                f"aecli train prior --model {config.model}"
            )
        if config.steps is not None:
            raise ConfigError(f"--steps {config.steps}: only a flow takes steps, and none was trained on these weights")
    try:
        fitted = fitted_prior(loaded, listen)
    except DataError as error:
        if config.prior in ("gaussian", "mixture") or not loaded.model.prior_is_normal:
            raise
        listen(Notice(f"sampling from N(0, I); how far the latents are from it isn't known: {error}"))
        return LatentPrior("normal", *drawn)
    if config.prior == "normal":
        if fitted.spread.is_far:
            listen(Notice(warning(fitted)))
        return LatentPrior("normal", *drawn)
    name = "mixture" if config.prior == "auto" else config.prior
    if config.prior == "auto":
        size = len(fitted.mixture.weights)
        what = f"a mixture of {size} Gaussians" if size > 1 else "a Gaussian"
        listen(Notice(f"sampling from {what} fitted to the latents of {fitted.count:,} images"))
    return LatentPrior(name, *drawn, fitted=fitted)


def warning(fitted: FittedPrior) -> str:
    """Say how far latents are from N(0, I), and what does better."""
    spread = fitted.spread
    if spread.posterior is None:
        figure = f"by {spread.divergence:.1f} nats a number, with a standard deviation of {spread.means:.2f}"
    else:
        figure = f"the posterior's standard deviation is {spread.posterior:.2f} in place of 1"
    return f"the latents are far from N(0, I) ({figure}): such samples are noise; --prior mixture does better"


def find_flow(loaded: LoadedModel, config: SampleConfig) -> RunFolder | None:
    """Return the newest run of a prior that was trained on those weights: under `--runs`, or beside the model's run."""
    places = [config.runs, *([loaded.located.run.path.resolve().parent] if loaded.located.run else [])]
    found = [
        run for place in places for run in list_runs(place) if run.model.exists() and _weights(run) == loaded.sha256
    ]
    return max(found, key=RunFolder.touched, default=None)


def _weights(run: RunFolder) -> str | None:
    """The SHA-256 of the autoencoder whose latents a run learnt, or None."""
    try:
        encoder = run.read_config()["options"].get("autoencoder")
    except AecliError:
        return None
    return encoder.get("sha256") if isinstance(encoder, dict) else None


def _load_flow(run: RunFolder, loaded: LoadedModel) -> Prior:
    model, _ = checkpoints.load_model(run.model)
    if not isinstance(model, Prior):
        raise CheckpointError(f"{run.model} holds no prior, though {run.config.name} beside it says so")
    return model.to(loaded.placement.device)
