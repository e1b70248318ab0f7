"""A distribution over latents, to draw from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from aecli.models.base import Prior
from aecli.models.flow import Flow
from aecli.sampling.fitted_prior import FittedPrior

FLOW_STEPS = 50
_BATCH = 16  # latents made at once

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class LatentPrior:
    """A distribution over latents of `shape` (without the batch), by one of the names of `aecli sample --prior`.

    `fitted` is set for gaussian and mixture, `trained` for a flow, which samples in `flow_steps` steps, and for an
    autoregressive prior. `temperature` multiplies the standard deviations, for a flow those of its noise; an
    autoregressive prior's logits are divided by it. `fingerprint` is the SHA-256 of a trained prior's weights.
    `to_codes` maps the latents of a model with codes to the nearest ones. `labels` are the numbers of classes that
    a trained prior draws of in turn; `guidance` is as `Prior.sample` takes it.
    """

    name: str
    shape: tuple[int, ...]
    temperature: float
    seed: int
    fitted: FittedPrior | None = None
    trained: Prior | None = None
    flow_steps: int = FLOW_STEPS
    fingerprint: str = ""
    to_codes: Callable[[Tensor], Tensor] | None = None
    labels: tuple[int, ...] = ()
    guidance: float = 1.0

    def sample(self, indices: Sequence[int]) -> Tensor:
        """Return latents float32 (N, …); each depends only on (seed, index), up to rounding, which depends on N.

        Of a model with codes they are codes, int64 (N, codebooks, h, w). With labels they depend on these too.
        """
        if self.trained is not None and self.trained.takes_codes:
            return self._of_trained(self.trained, indices)
        latents = self._latents(indices)
        return latents if self.to_codes is None else self.to_codes(latents)

    def _latents(self, indices: Sequence[int]) -> Tensor:
        if self.fitted is not None:
            scores = [self.fitted.sample(self.name, self.temperature, self.seed, index) for index in indices]
            return torch.from_numpy(self.fitted.unwhiten(np.stack(scores))).reshape(-1, *self.shape)
        if self.trained is not None:
            return self._of_trained(self.trained, indices).float().reshape(-1, *self.shape)
        return torch.stack([self.temperature * sample_noise(self.shape, self.seed, index) for index in indices])

    def to_noise(self, latents: Floats) -> Floats:
        """Return whitened latents (N, …) of latents (N, D), under a flow the noise that it carries to them.

        A straight line between two of them would leave where draws are, an arc does not.
        """
        if self.fitted is not None:
            return self.fitted.whiten(latents)
        if isinstance(self.trained, Flow):
            flow = self.trained
            with torch.inference_mode():
                shaped = torch.from_numpy(latents).reshape(-1, *flow.latent_shape).to(flow.mean.device)
                return flow.invert(flow.whiten(shaped), self.flow_steps).flatten(1).cpu().numpy()
        return latents

    def from_noise(self, noise: Floats) -> Floats:
        """Return the latents (N, D) of what `to_noise` returns; what the prior leaves out of latents is missing."""
        if self.fitted is not None:
            return self.fitted.unwhiten(noise)
        if isinstance(self.trained, Flow):
            flow = self.trained
            shaped = torch.from_numpy(noise).reshape(-1, *flow.noise_shape()).to(flow.mean.device)
            with torch.inference_mode():
                parts = [flow.unwhiten(flow.sample(part, self.flow_steps)) for part in torch.split(shaped, _BATCH)]
            return torch.cat(parts).flatten(1).cpu().numpy()
        return noise

    def _of_trained(self, prior: Prior, indices: Sequence[int]) -> Tensor:
        device = next(prior.parameters()).device
        noise = torch.stack([sample_noise(prior.noise_shape(), self.seed, index) for index in indices]).to(device)
        guided: dict[str, Any] = {"guidance": self.guidance} if self.labels or self.guidance != 1 else {}
        if self.labels:
            guided["labels"] = torch.tensor([self.labels[each % len(self.labels)] for each in indices], device=device)
        with torch.inference_mode():
            return prior.unwhiten(prior.sample(noise, self.flow_steps, self.temperature, **guided)).cpu()


def sample_noise(shape: Sequence[int], seed: int, index: int) -> Tensor:
    """Return standard normal noise, float32, that depends only on (seed, index), not on the device."""
    entropy = np.random.SeedSequence([seed, index])
    return torch.from_numpy(np.random.Generator(np.random.PCG64(entropy)).standard_normal(shape, dtype=np.float32))
