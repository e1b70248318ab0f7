"""What training minimises: a pixel loss, a perceptual one, SSIM, the bottleneck's terms and an adversarial loss."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from aecli.configs.train import ObjectiveConfig
from aecli.metrics.lpips import LPIPS
from aecli.metrics.ssim import differentiable_ssim
from aecli.models.base import Prediction, Trainable
from aecli.runtime.distributed import Distributed
from aecli.training.discriminator import Discriminator

CHARBONNIER_EPSILON = 1e-3  # on the scale of [-1, 1]: nearer than this it is like the mean squared error
RECONSTRUCTION, PERCEPTUAL, SSIM, ADVERSARIAL, DISCRIMINATOR = (
    "recon", "perceptual", "ssim_loss", "adversarial", "discriminator",
)  # fmt: skip


@dataclass(frozen=True)
class Losses:
    """Losses of a batch as float32 scalars: `total` is minimised; `parts` are not weighted."""

    total: Tensor
    parts: Mapping[str, Tensor]


def charbonnier(output: Tensor, target: Tensor) -> Tensor:
    """Return mean(√(d² + ε²)) of the differences d (Charbonnier et al. 1994): L1, smooth at 0."""
    return (output - target).square().add(CHARBONNIER_EPSILON**2).sqrt().mean()


def negative_log_likelihood(output: Tensor, target: Tensor) -> Tensor:
    """Return -mean(output) of log-likelihoods, which are those of the target already."""
    return -output.mean()


PIXEL_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "charbonnier": charbonnier,
}


class Objective(nn.Module):
    """The losses of a model's predictions, in float32 whatever the precision of the model.

    `weights` holds what is minimised for the model, by the names of its parts; `critics` are networks that are trained
    against it, each with a loss of its own name.
    """

    def __init__(self, config: ObjectiveConfig, model: Trainable, perceptual: LPIPS | None = None) -> None:
        """Compose it; `perceptual` is needed where that has a weight. Critics are drawn from torch's generator."""
        super().__init__()
        self.config = config
        is_nll = model.predicts_log_likelihoods
        self._pixel_loss = negative_log_likelihood if is_nll else PIXEL_LOSSES[config.pixel_loss]
        self.perceptual = perceptual
        optional = {PERCEPTUAL: config.perceptual_weight, SSIM: config.ssim_weight,
                    ADVERSARIAL: config.adversarial_weight}  # fmt: skip
        self.weights = {RECONSTRUCTION: 1.0, **model.term_weights}
        self.weights |= {name: weight for name, weight in optional.items() if weight}
        self.critics = nn.ModuleDict({DISCRIMINATOR: Discriminator()} if config.adversarial_weight else {})
        self.loss_names = (*self.weights, *self.critics)
        self._logit_means: Tensor | None = None  # of the step so far

    def starts_at(self, name: str) -> int:
        """Return the number of steps after which the loss `name` begins."""
        return self.config.adversarial_start if name in (ADVERSARIAL, *self.critics) else 0

    def is_adversarial(self, step: int) -> bool:
        """Whether critics take part in the step that follows `step` steps."""
        return bool(self.critics) and step >= self.config.adversarial_start

    def adversarial_scale(self, step: int) -> float:
        """Return the fraction of its weight that the adversarial loss has after `step` steps: it grows to 1."""
        return min(1.0, (step - self.config.adversarial_start + 1) / (self.config.adversarial_ramp + 1))

    def model_loss(self, prediction: Prediction, step: int) -> Losses:
        """Return the losses that the model's step minimises, after `step` steps."""
        losses = self.validation_loss(prediction)
        if not self.is_adversarial(step):
            return losses
        with frozen(self.critics):
            adversarial = -self.critics[DISCRIMINATOR](prediction.output.float()).mean()
        total = losses.total + self.adversarial_scale(step) * self.weights[ADVERSARIAL] * adversarial
        return Losses(total, {**losses.parts, ADVERSARIAL: adversarial})

    def validation_loss(self, prediction: Prediction) -> Losses:
        """Return the losses without the adversarial one, which says nothing about held-out images."""
        output, target = prediction.output.float(), prediction.target.float()
        parts = {RECONSTRUCTION: self._pixel_loss(output, target), **prediction.terms}
        if self.perceptual is not None:
            parts[PERCEPTUAL] = self.perceptual.differentiable(output, target).mean()
        if SSIM in self.weights:
            parts[SSIM] = 1 - differentiable_ssim(output, target).mean()
        total = parts[RECONSTRUCTION]
        for name, part in parts.items():
            if name != RECONSTRUCTION:
                total = total + self.weights[name] * part
        return Losses(total, parts)

    def critic_loss(self, name: str, output: Tensor, images: Tensor, weight: float) -> Losses:
        """Return the loss of a critic on reconstructions and images (n, 3, H, W), a fraction `weight` of the batch."""
        critic = self.critics[name]
        assert isinstance(critic, Discriminator)
        loss, means = critic.loss(output.detach().float(), images.float())
        self._logit_means = weight * means if self._logit_means is None else self._logit_means + weight * means
        return Losses(loss, {name: loss})

    def end_step(self, name: str, distributed: Distributed) -> None:
        """Update a critic's moving averages from the logits of the step's whole batch."""
        critic, means = self.critics[name], self._logit_means
        assert isinstance(critic, Discriminator) and means is not None
        distributed.sum_tensors([means])
        critic.update_means(means)
        self._logit_means = None


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Keep gradients away from the parameters of `module`; they pass through it."""
    parameters = list(module.parameters())
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
