"""A prior over latents: rectified flow with a small transformer.

Liu, Gong and Liu, "Flow straight and fast: learning to generate and transfer data with rectified flow", ICLR 2023;
times from a logit-normal distribution as in Esser et al., "Scaling rectified flow transformers for high-resolution
image synthesis", ICML 2024; adaLN-Zero blocks as in Peebles and Xie, "Scalable diffusion models with transformers",
ICCV 2023.
"""

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from aecli.errors import ModelError
from aecli.models.base import Prediction, Prior
from aecli.models.options import FlowOptions

_TIME_FREQUENCIES = 64
_EVAL_DRAWS = 8  # times and noises per example, the same in every evaluation
_EVAL_SEED = 0
_INVERSIONS = 4  # iterations for a step of the solver
_LABEL_DROPOUT = -1.2816  # of a standard normal number below it, which is 1 in 10: the class is left out of the example
_LEAST_VARIANCE = 1e-4  # of a principal channel, to the mean of all: what varies less is not blown up to unit variance


class Flow(Prior):
    """A velocity field that carries N(0, I) to the distribution of whitened latents.

    Whitening projects a latent's channels onto their first principal components, and divides each by its own standard
    deviation, or in older runs all by one. A square of `patch` x `patch` positions is a token of the transformer.

    With `base` "gaussian" the field is that which carries N(0, I) to a Gaussian with the mean and covariance of the
    examples, and the transformer's is added to it: before the first step samples are those of that Gaussian. Sampling
    follows the Gaussian's part exactly, in coordinates in which it stands still, and only the rest in Euler's steps.
    """

    Options = FlowOptions
    betas = (0.9, 0.99)
    plateau_epochs = 50  # the loss is noisy, because times and noise are random

    def __init__(self, options: FlowOptions) -> None:
        """Build it with weights from torch's global generator; at first the transformer's velocity is zero."""
        super().__init__()
        self.options = options
        width = options.width
        self._moments: tuple[Tensor, ...] = ()  # count, sum and products of the channels, until `fit`
        self.mean = nn.Buffer(torch.zeros(options.latent_channels))
        self.basis = nn.Buffer(torch.zeros(options.channels, options.latent_channels))
        self.scale = nn.Buffer(torch.ones(() if options.whitening == "common" else (options.channels, 1, 1)))
        if options.base == "gaussian":
            self.centre = nn.Buffer(torch.zeros(options.numbers))
            self.directions = nn.Buffer(torch.eye(options.numbers))  # in rows
            self.variances = nn.Buffer(torch.ones(options.numbers))
        self.time_mlp = nn.Sequential(nn.Linear(2 * _TIME_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        numbers = options.channels * options.patch**2  # of a token
        self.proj_in = nn.Linear(numbers, width)
        self.pos_embed = nn.Parameter(0.02 * torch.randn((options.side // options.patch) ** 2, width))
        self.blocks = nn.ModuleList(
            _Block(width, options.attention_heads, options.dropout) for _ in range(options.depth)
        )
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.proj_out = nn.Linear(width, numbers)
        for layer in (self.final_modulation, self.proj_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if options.classes:  # the last one is that of examples whose class isn't known
            self.class_embed = nn.Embedding(len(options.classes) + 1, width)
            nn.init.normal_(self.class_embed.weight, std=0.02)

    def example_shape(self, image_size: int) -> tuple[int, ...]:
        """Return (channels, side, side), whatever the image size; with classes there is one more channel."""
        return (self.options.channels + bool(self.options.classes), self.options.side, self.options.side)

    @property
    def contains_worse(self) -> bool:
        """Whether there is a Gaussian."""
        return bool(self.options.base == "gaussian")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(latent_channels, side, side) of the latents that it whitens."""
        return (self.options.latent_channels, self.options.side, self.options.side)

    def draw_noise(self, count: int, image_size: int) -> Tensor:
        """Return standard normal numbers: per example the logit of its time, then its noise, channels·side² numbers.

        With classes another one, which decides whether the example's class is left out.
        """
        numbers = 1 + math.prod(self.noise_shape()) + bool(self.options.classes)
        return torch.randn(count, numbers, device=self.mean.device)

    def predict(self, examples: Tensor, noise: Tensor | None = None) -> Prediction:
        """Return velocities at examples (N, channels, side, side) mixed with noise, beside the right ones.

        Without `noise` there are a few fixed draws for each example, whose class is never left out.
        """
        examples, labels = self.split_labels(examples)
        if noise is None:
            generator = torch.Generator().manual_seed(_EVAL_SEED)
            draws = torch.randn(_EVAL_DRAWS, len(examples), 1 + examples[0].numel(), generator=generator)
            made = [self._compare(examples, labels, draw) for draw in draws.to(examples.device)]
            return Prediction(torch.cat([one.output for one in made]), torch.cat([one.target for one in made]))
        if labels is not None:
            labels = labels.masked_fill(noise[:, -1] < _LABEL_DROPOUT, len(self.options.classes))
        return self._compare(examples, labels, noise)

    def _compare(self, examples: Tensor, labels: Tensor | None, draw: Tensor) -> Prediction:
        """Return the velocities of one draw, (N, 1 + channels·side²) or more, beside the right ones."""
        time = torch.sigmoid(draw[:, 0])
        noise = draw[:, 1 : 1 + examples[0].numel()].reshape(examples.shape)
        mixed = torch.lerp(noise, examples, time[:, None, None, None])
        return Prediction(self(mixed, time, labels), examples - noise)

    def forward(self, mixed: Tensor, time: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """Return the velocity (N, channels, side, side) at examples mixed with noise, of that shape.

        `time` (N,) goes from 0, pure noise, to 1, no noise; 0.5 by default. `labels` int64 (N,) are numbers of
        classes; without them no class is known.
        """
        if time is None:
            time = mixed.new_full((len(mixed),), 0.5)
        velocity = self._residual(mixed, time, labels)
        return velocity if self.options.base == "none" else velocity + self._gaussian_velocity(mixed, time)

    def _residual(self, mixed: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the transformer's velocity, as `forward` takes its arguments."""
        embedded = self.time_mlp(timestep_embedding(time))
        if self.options.classes:
            if labels is None:
                labels = self.no_labels(len(mixed), mixed.device)
            embedded = embedded + self.class_embed(labels)
        condition = functional.silu(embedded)
        patches = functional.pixel_unshuffle(mixed, self.options.patch)
        tokens = self.proj_in(patches.flatten(2).transpose(1, 2)) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.final_modulation(condition)[:, None].chunk(2, dim=-1)
        velocity: Tensor = self.proj_out(self.norm(tokens) * (1 + scale) + shift)
        return functional.pixel_shuffle(velocity.transpose(1, 2).reshape(patches.shape), self.options.patch)

    def sample(
        self,
        noise: Tensor,
        steps: int,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Return the examples that `noise` (N, channels, side, side) is carried to, in `steps` equal Euler steps.

        `temperature` multiplies the noise. `guidance` multiplies what a class of `labels` (N,) changes; without them
        what the transformer changes of the Gaussian: guidance by a worse model, as in Karras et al., "Guiding a
        diffusion model with a bad version of itself", NeurIPS 2024, at no cost.
        """
        state = self._standardise(temperature * noise, noise.new_zeros(len(noise)))
        for step in range(steps):
            time = noise.new_full((len(noise),), step / steps)
            velocity = self._guided(self._restore(state, time), time, labels, guidance).float()
            state = state + self._standardise_velocity(velocity, time) / steps
        return self._restore(state, noise.new_ones(len(noise)))

    def invert(self, examples: Tensor, steps: int) -> Tensor:
        """Return the noise that `sample` carries to whitened latents (N, channels, side, side) in so many steps.

        Each of its steps is inverted by fixed-point iteration, as in Pan et al., "Effective real image editing with
        accelerated iterative diffusion inversion", ICCV 2023.
        """
        state = self._standardise(examples, examples.new_ones(len(examples)))
        for step in reversed(range(steps)):
            time, reached = examples.new_full((len(examples),), step / steps), state
            for _ in range(_INVERSIONS):
                velocity = self._residual(self._restore(state, time), time).float()
                state = reached - self._standardise_velocity(velocity, time) / steps
        return self._restore(state, examples.new_zeros(len(examples)))

    def _guided(self, mixed: Tensor, time: Tensor, labels: Tensor | None, guidance: float) -> Tensor:
        """Return the transformer's velocity, guided as in `sample`."""
        if guidance == 1:
            return self._residual(mixed, time, labels)
        if labels is None:
            return guidance * self._residual(mixed, time)
        none = self.no_labels(len(labels), labels.device)
        both = self._residual(torch.cat([mixed, mixed]), torch.cat([time, time]), torch.cat([labels, none]))
        of_class, of_all = both.chunk(2)
        guided: Tensor = torch.lerp(of_all, of_class, guidance)
        return guided

    def _gaussian_velocity(self, mixed: Tensor, time: Tensor) -> Tensor:
        """Return the expectation of examples - noise, given their mixture, if examples were Gaussian."""
        time = time[:, None]
        along = _matmul(mixed.flatten(1) - time * self.centre, self.directions.T)
        change = (time * self.variances - (1 - time)) / self._mixed_variances(time)
        return (self.centre + _matmul(along * change, self.directions)).reshape(mixed.shape)

    def _mixed_variances(self, time: Tensor) -> Tensor:
        """Return the variances (N, D) along `directions` of Gaussian examples mixed with noise, of times (N, 1)."""
        return time**2 * self.variances + (1 - time) ** 2

    def _standardise(self, mixed: Tensor, time: Tensor) -> Tensor:
        """Return mixtures in coordinates in which those of Gaussian examples are N(0, I) and don't move."""
        if self.options.base == "none":
            return mixed
        return self._standardise_velocity(mixed - (time[:, None] * self.centre).reshape(mixed.shape), time)

    def _standardise_velocity(self, velocity: Tensor, time: Tensor) -> Tensor:
        """Return velocities of mixtures in those coordinates."""
        if self.options.base == "none":
            return velocity
        along = _matmul(velocity.flatten(1), self.directions.T)
        return (along / self._mixed_variances(time[:, None]).sqrt()).reshape(velocity.shape)

    def _restore(self, state: Tensor, time: Tensor) -> Tensor:
        """Invert `_standardise`."""
        if self.options.base == "none":
            return state
        time = time[:, None]
        along = state.flatten(1) * self._mixed_variances(time).sqrt()
        return (time * self.centre + _matmul(along, self.directions)).reshape(state.shape)

    def partial_fit(self, latents: Tensor) -> None:
        """Add a batch, on the CPU, to the moments of the channels over all positions."""
        rows = latents.movedim(1, -1).flatten(0, -2).double()
        moments = (torch.tensor(len(rows)), rows.sum(dim=0), rows.T @ rows)
        before = self._moments or tuple(map(torch.zeros_like, moments))
        self._moments = tuple(one + other for one, other in zip(before, moments, strict=True))

    def fit(self) -> None:
        """Compute the principal channels and their scale; raises ModelError where the latents don't vary."""
        (count, total, products), self._moments = self._moments, ()
        mean = total / count
        covariance = products / count - torch.outer(mean, mean)
        values, vectors = torch.linalg.eigh(covariance)
        values = values.flip(0)[: self.options.channels].clamp(min=0)
        if not float(values[0]) > 0:
            raise ModelError("all latents are the same: a prior has nothing to learn")
        self.mean.copy_(mean)
        self.basis.copy_(_with_signs(vectors.flip(1)[:, : self.options.channels].T))
        variances = values.mean() if self.scale.ndim == 0 else values.clamp(min=_LEAST_VARIANCE * values.mean())
        self.scale.copy_(variances.sqrt().reshape(self.scale.shape))

    def fit_examples(self, examples: Tensor) -> None:
        """Fit the Gaussian that the velocity begins with to whitened latents (N, …).

        Its covariance is shrunk towards a multiple of the identity, the more the fewer examples there are: Chen,
        Wiesel, Eldar and Hero, "Shrinkage algorithms for MMSE covariance estimation", IEEE TSP 58 (2010), OAS.
        """
        if self.options.base == "none":
            return
        rows = self.split_labels(examples)[0].flatten(1).double()
        centred = rows - rows.mean(dim=0)
        covariance = centred.T @ centred / len(rows)
        size, trace, squares = len(covariance), covariance.trace(), covariance.square().sum()
        share = ((squares + trace**2) / ((len(rows) + 1) * (squares - trace**2 / size))).clamp(max=1)
        covariance = (1 - share) * covariance + share * trace / size * torch.eye(size, dtype=covariance.dtype)
        values, vectors = torch.linalg.eigh(covariance)
        self.centre.copy_(rows.mean(dim=0))
        self.directions.copy_(_with_signs(vectors.flip(1).T))
        self.variances.copy_(values.flip(0).clamp(min=_LEAST_VARIANCE * float(values.mean())))

    def whiten(self, latents: Tensor) -> Tensor:
        """Return the scaled principal channels (N, channels, side, side) of latents."""
        centred = latents - self.mean[:, None, None]
        return torch.einsum("nchw,kc->nkhw", centred, self.basis) / self.scale

    def unwhiten(self, examples: Tensor) -> Tensor:
        """Return the latents (N, latent_channels, side, side) of scaled principal channels."""
        return torch.einsum("nkhw,kc->nchw", examples * self.scale, self.basis) + self.mean[:, None, None]


class _Block(nn.Module):
    """Attention and an MLP, each shifted, scaled and gated by the time (adaLN-Zero); at first the identity."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, tokens: Tensor, condition: Tensor) -> Tensor:
        modulation = self.modulation(condition)[:, None]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.chunk(6, dim=-1)
        tokens = tokens + gate * self._attention(self.norm(tokens) * (1 + scale) + shift)
        residual: Tensor = self.mlp(self.norm(tokens) * (1 + mlp_scale) + mlp_shift)
        output: Tensor = tokens + mlp_gate * residual
        return output

    def _attention(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        output: Tensor = self.attention_out(attended.transpose(1, 2).flatten(2))
        return output


def _matmul(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return their product in float32, even under autocast."""
    with nullcontext() if rows.is_meta else torch.autocast(rows.device.type, enabled=False):
        return rows.float() @ matrix


def _with_signs(rows: Tensor) -> Tensor:
    """Return eigenvectors, whose sign is arbitrary, with a positive largest entry, for the same result everywhere."""
    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return rows * largest.sign()


def timestep_embedding(time: Tensor) -> Tensor:
    """Return cosines and sines (N, 128) of times (N,), at frequencies from 1 to 1000."""
    exponents = torch.linspace(0, math.log(1000), _TIME_FREQUENCIES, device=time.device)
    angles: Tensor = time[:, None].float() * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=1)
