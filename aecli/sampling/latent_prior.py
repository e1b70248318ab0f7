"""A distribution over latents, to draw from."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from aecli.models.base import Prior
from aecli.sampling.fitted_prior import FittedPrior

FLOW_STEPS = 50


@dataclass(frozen=True)
class LatentPrior:
    """A distribution over latents of `shape` (without the batch): `name` is normal, gaussian, mixture or flow.

    `fitted` is set for gaussian and mixture, `flow` for a flow, which samples in `flow_steps` steps. `temperature`
    multiplies the standard deviations, for a flow those of its noise. `fingerprint` is the SHA-256 of a flow's weights.
    """

    name: str
    shape: tuple[int, ...]
    temperature: float
    seed: int
    fitted: FittedPrior | None = None
    flow: Prior | None = None
    flow_steps: int = FLOW_STEPS
    fingerprint: str = ""

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
