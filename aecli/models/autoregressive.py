"""A prior over codes: a causal transformer over the places of a latent, with exact likelihoods.

Places are predicted in raster order, as in van den Oord et al., "Neural discrete representation learning", NeurIPS
2017, by a transformer as in Esser et al., "Taming transformers for high-resolution image synthesis", CVPR 2021. The
digits of one place follow each other too, as in Lee et al., "Autoregressive image generation using residual
quantization", CVPR 2022, but through a small network that sums what came before: NADE (Larochelle and Murray, AISTATS
2011).
"""

import math
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional

from aecli.errors import ModelError
from aecli.models.base import Prediction, Prior
from aecli.models.options import AutoregressiveOptions

_INIT_STD = 0.3  # of embeddings
_LABEL_DROPOUT = 0.1  # of training examples, whose class is left out
_DIGIT_SHARE = 4  # the network of a place's digits is narrower than the transformer by this factor


class Autoregressive(Prior):
    """The probability of each digit of a place's codes, given the places before it and the digits before it there.

    A code's index is written in digits (`levels`, mixed radix): of FSQ the levels of its channels, else the index
    itself. Each has a head of its own, so that no softmax goes over all codes. Examples are int32 (N, digits, side,
    side), of which the digit d of codebook g has the place d·codebooks + g.
    """

    Options = AutoregressiveOptions
    betas = (0.9, 0.99)
    takes_codes = True
    example_dtype = torch.int32
    predicts_log_likelihoods = True

    def __init__(self, options: AutoregressiveOptions) -> None:
        """Build it with weights from torch's global generator; at first every digit is as likely as any other."""
        super().__init__()
        self.options = options
        width = options.width
        self._sizes = [size for size in options.levels for _ in range(options.codebooks)]
        self._starts = [0, *accumulate(self._sizes)]
        total, narrow = self._starts[-1], max(1, width // _DIGIT_SHARE)
        self._counts: Tensor | None = None  # of each level of each digit, until `fit`
        self.log_frequencies = nn.Buffer(torch.zeros(total))
        self.start = nn.Parameter(_INIT_STD * torch.randn(width))
        self.pos_embed = nn.Parameter(_INIT_STD * torch.randn(options.side**2, width))
        self.embedding = nn.Embedding(total, width)
        self.blocks = nn.ModuleList(
            _Block(width, options.attention_heads, options.dropout) for _ in range(options.depth)
        )
        self.norm = nn.LayerNorm(width)
        self.context = nn.Linear(width, narrow)
        self.digit_embedding = nn.Embedding(total, narrow)
        self.digit_weight = nn.Parameter(torch.randn(len(self._sizes), narrow, narrow) / math.sqrt(narrow))
        self.digit_bias = nn.Parameter(torch.zeros(len(self._sizes), 1, narrow))
        self.heads = nn.ModuleList(nn.Linear(narrow, size) for size in self._sizes)
        self.dropout = nn.Dropout(options.dropout)
        tables = [self.embedding, self.digit_embedding]
        if options.classes:  # the last one is that of examples whose class isn't known
            self.class_embed = nn.Embedding(len(options.classes) + 1, width)
            tables.append(self.class_embed)
        for table in tables:
            nn.init.normal_(table.weight, std=_INIT_STD)
        for head in self.heads:
            assert isinstance(head, nn.Linear)
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def example_shape(self, image_size: int) -> tuple[int, ...]:
        """Return (digits, side, side), whatever the image size; with classes there is one more channel."""
        return (len(self._sizes) + bool(self.options.classes), self.options.side, self.options.side)

    def draw_noise(self, count: int, image_size: int) -> Tensor | None:
        """Return uniform numbers (count,) that decide whose class is left out, if there are classes."""
        return torch.rand(count, device=self.log_frequencies.device) if self.options.classes else None

    def predict(self, examples: Tensor, noise: Tensor | None = None) -> Prediction:
        """Return the log-likelihood of each code of examples (N, digits, side, side), in nats.

        Without `noise` no class is left out.
        """
        digits, labels = self.split_labels(examples)
        if labels is not None and noise is not None:
            labels = labels.masked_fill(noise < _LABEL_DROPOUT, len(self.options.classes))
        return Prediction(self(digits, labels), digits)

    def forward(self, digits: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the log-likelihood, float32 (N, codebooks, side, side) in nats, of each code, given in digits.

        `labels` int64 (N,) are numbers of classes; without them no class is known.
        """
        rows = self._rows(digits).flatten(2)  # (N, digits, places)
        before = self.embedding(rows).sum(1)[:, :-1]
        tokens = torch.cat([self.start.expand(len(rows), 1, -1), before], 1) + self.pos_embed
        tokens = self.dropout(tokens + self._condition(len(rows), labels).unsqueeze(1))
        for block in self.blocks:
            tokens = block(tokens)
        context = self.context(self.norm(tokens)).flatten(0, 1)  # (N·places, narrow)
        rows = rows.movedim(1, 0).flatten(1)  # (digits, N·places)
        embedded = self.digit_embedding(rows)
        seen = torch.cat([torch.zeros_like(embedded[:1]), embedded[:-1].cumsum(0)])
        hidden = functional.silu(torch.baddbmm(self.digit_bias, context + seen, self.digit_weight))
        found = []
        # Unbound, because the gradient of an index is a whole tensor of zeros around it.
        for digit, (row, made) in enumerate(zip(rows, hidden.unbind(), strict=True)):
            log_likelihoods = self._logits(digit, made).log_softmax(-1)
            found.append(log_likelihoods.gather(1, (row - self._starts[digit]).unsqueeze(1)).squeeze(1))
        options = self.options
        of_digits = torch.stack(found).view(len(options.levels), options.codebooks, len(digits), -1)
        found_of_codes: Tensor = of_digits.sum(0).movedim(1, 0)
        return found_of_codes.reshape(len(digits), -1, options.side, options.side)

    def sample(
        self,
        noise: Tensor,
        steps: int,
        temperature: float = 1.0,
        labels: Tensor | None = None,
        guidance: float = 1.0,
    ) -> Tensor:
        """Return examples made from standard normal noise of their shape, digit by digit.

        The noise is how far up a digit lies among the probabilities in order; logits are divided by `temperature`, of
        which 0 takes the most likely digit. There are as many steps as digits, whatever `steps` says. Those of classes
        `labels` (N,) have `guidance` times what the class changes of the logits.
        """
        heights = torch.special.ndtr(noise.flatten(2).double())  # (N, digits, places), from 0 to 1
        rows = torch.zeros(heights.shape, dtype=torch.int64, device=noise.device)
        condition = self._condition(len(noise), labels)
        copies = 1 if labels is None or guidance == 1 else 2  # the other one knows no class
        if copies == 2:
            condition = torch.cat([condition, self._condition(len(noise), None)])
        caches = [block.empty_cache(len(condition), heights.shape[2]) for block in self._blocks()]
        token = self.start.expand(len(condition), -1)
        for place in range(heights.shape[2]):
            hidden = token + self.pos_embed[place] + condition
            for block, cache in zip(self._blocks(), caches, strict=True):
                hidden = block.step(hidden, cache, place)
            context = self.context(self.norm(hidden))
            for digit in range(len(self._sizes)):
                made = functional.silu(context @ self.digit_weight[digit] + self.digit_bias[digit])
                logits = self._logits(digit, made)
                if copies == 2:
                    of_class, of_all = logits.log_softmax(-1).chunk(2)
                    logits = of_all + guidance * (of_class - of_all)
                chosen = _drawn(logits, heights[:, digit, place], temperature) + self._starts[digit]
                rows[:, digit, place] = chosen
                context = context + self.digit_embedding(chosen).repeat(copies, 1)
            token = self.embedding(rows[:, :, place]).sum(1).repeat(copies, 1)
        starts = torch.tensor(self._starts[:-1], device=noise.device).unsqueeze(1)
        return (rows - starts).view(noise.shape).to(self.example_dtype)

    def _blocks(self) -> list["_Block"]:
        return [block for block in self.blocks if isinstance(block, _Block)]

    def _condition(self, count: int, labels: Tensor | None) -> Tensor:
        """Return what tokens (N, width) get of their class, or of none."""
        if not self.options.classes:
            return self.start.new_zeros(count, len(self.start))
        if labels is None:
            labels = self.no_labels(count, self.start.device)
        condition: Tensor = self.class_embed(labels)
        return condition

    def partial_fit(self, latents: Tensor) -> None:
        """Count the digits of a batch of codes (N, codebooks, side, side)."""
        rows = self._rows(self.whiten(latents).cpu())
        counts = torch.bincount(rows.flatten(), minlength=self._starts[-1])
        self._counts = counts if self._counts is None else self._counts + counts

    def fit(self) -> None:
        """Begin with digits as frequent as those counted; raises ModelError where there is only one code."""
        assert self._counts is not None
        parts, self._counts = torch.split(self._counts, self._sizes), None
        if all(int(part.count_nonzero()) <= 1 for part in parts):
            raise ModelError("all codes are the same: a prior has nothing to learn")
        self.log_frequencies.copy_(torch.cat([((part + 1) / (part + 1).sum()).log() for part in parts]))

    def whiten(self, latents: Tensor) -> Tensor:
        """Return the digits int32 (N, digits, side, side) of codes (N, codebooks, side, side)."""
        places, sizes = self._digits(latents.device)
        digits = latents.repeat(1, len(self.options.levels), 1, 1) // places % sizes
        return digits.to(self.example_dtype)

    def unwhiten(self, examples: Tensor) -> Tensor:
        """Return the codes int64 (N, codebooks, side, side) of digits."""
        weighted = examples.long() * self._digits(examples.device)[0]
        count, _, height, width = weighted.shape
        return weighted.view(count, len(self.options.levels), self.options.codebooks, height, width).sum(1)

    def _digits(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return what each digit counts in the index of a code, and its levels, both (digits, 1, 1)."""
        values = accumulate(self.options.levels[:-1], int.__mul__, initial=1)
        repeated = [value for value in values for _ in range(self.options.codebooks)]
        both = (torch.tensor(each, device=device).view(-1, 1, 1) for each in (repeated, self._sizes))
        return next(both), next(both)

    def _rows(self, examples: Tensor) -> Tensor:
        """Return where each digit stands in the tables of embeddings, int64 of the same shape."""
        return examples.long() + torch.tensor(self._starts[:-1], device=examples.device).view(-1, 1, 1)

    def _logits(self, digit: int, hidden: Tensor) -> Tensor:
        frequencies = self.log_frequencies[self._starts[digit] : self._starts[digit + 1]]
        logits: Tensor = self.heads[digit](hidden).float() + frequencies
        return logits


class _Block(nn.Module):
    """Causal attention and an MLP; at first the identity."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
        )
        for layer in (self.attention_out, self.mlp[-1]):
            assert isinstance(layer, nn.Linear)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens (N, places, width), each by itself and those before it."""
        query, key, value = self._split(self.qkv(self.norm(tokens)))
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self._added(tokens, attended)

    def empty_cache(self, count: int, places: int) -> Tensor:
        """Return room for the keys and values (2, N, heads, places, width/heads) of what `step` maps."""
        width = self.qkv.in_features
        return self.qkv.weight.new_zeros(2, count, self.heads, places, width // self.heads)

    def step(self, token: Tensor, cache: Tensor, place: int) -> Tensor:
        """Map the token (N, width) at `place`, after all those before it; its key and value are kept in `cache`."""
        query, key, value = self._split(self.qkv(self.norm(token)).unsqueeze(1))
        cache[0, :, :, place], cache[1, :, :, place] = key[:, :, 0], value[:, :, 0]
        keys, values = cache[:, :, :, : place + 1]
        attended = functional.scaled_dot_product_attention(query, keys, values)
        return self._added(token.unsqueeze(1), attended).squeeze(1)

    def _split(self, projected: Tensor) -> tuple[Tensor, ...]:
        count, places, _ = projected.shape
        parts = projected.chunk(3, dim=-1)
        return tuple(part.reshape(count, places, self.heads, -1).transpose(1, 2) for part in parts)

    def _added(self, tokens: Tensor, attended: Tensor) -> Tensor:
        tokens = tokens + self.attention_out(attended.transpose(1, 2).flatten(2))
        output: Tensor = tokens + self.mlp(tokens)
        return output


def _drawn(logits: Tensor, heights: Tensor, temperature: float) -> Tensor:
    """Return the indices (N,) at which the cumulated probabilities of logits (N, n) reach heights (N,) from 0 to 1."""
    if temperature == 0:
        return logits.argmax(-1)
    ends = (logits.double() / temperature).softmax(-1).cumsum(-1)
    passed = ends <= heights.unsqueeze(-1) * ends[:, -1:]
    return passed.sum(-1).clamp(max=logits.shape[-1] - 1)
