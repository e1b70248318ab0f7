"""What is said of a run beyond its numbers: each judgement in one place, with the figures that it rests on.

A judgement takes figures and returns a `Finding`, or None where it doesn't hold.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from aecli.errors import count_of, single_line

Row = Mapping[str, float | None]  # of metrics.csv
Size = tuple[int, int]

LEAST_EPOCHS = 10  # fewer say nothing of a trend
DEAD_RATE = 1e-3  # fraction of the first learning rate, below which steps change little
DIVERGED = 2.0  # fold of its lowest train loss
WON = 1e-3  # mean loss of a discriminator in an epoch, below which it teaches nothing
FEW_CODES = 0.5  # used, of a codebook, below which it is larger than the images need, or training goes wrong
COLLAPSED = 1e-3  # nats a number: the posterior's mean and standard deviation are then within 0.05 of N(0, 1)'s
FAR = 0.1  # nats a number: above this divergence from it, samples of N(0, I) decode to noise
_NOISES = 3.0  # a change is one if it is above so many standard deviations of the noise between epochs
_CHANGE = 0.01  # and above this fraction
# Pixels of a side that tools cut off or add, to make it a multiple of their scale: at most these, and this fraction.
_CROPPED, _PADDED, _FRACTION = 8, 31, 0.1


@dataclass(frozen=True)
class Finding:
    """A judgement: its `kind`, a line for the user, and the figures that it rests on."""

    kind: str
    text: str
    figures: Mapping[str, float]


def training_findings(rows: Sequence[Row], best_epoch: int, best_kl: float | None, options: object) -> list[Finding]:
    """Return what the figures of a run that has ended show.

    `rows` are those of metrics.csv, `best_kl` is the KL of the best epoch, and `options` are the model's.
    """
    trend = [rate_died_away(rows)]
    if not any("train_adversarial" in row for row in rows):  # against an adversary, a loss is no measure of progress
        trend.insert(0, diverged(rows, best_epoch) or overfitting(rows, best_epoch))
    trend = trend if any(trend) else [stalled(rows)]
    return [each for each in (*trend, collapsed(best_kl, options), few_codes(rows)) if each]


def overfitting(rows: Sequence[Row], best_epoch: int) -> Finding | None:
    """Validation loss rose from its minimum by more than its noise, while train loss fell on and lies below it."""
    both = [(row.get("train_loss"), row.get("val_loss")) for row in rows]
    train = [loss for loss, _ in both if loss is not None]
    val = [loss for _, loss in both if loss is not None]
    if len(train) != len(rows) or len(val) != len(rows) or len(rows) < LEAST_EPOCHS:
        return None
    window = _window(rows)
    start, lowest, last = _lowest_and_last(val, window)
    train_then, train_last = fmean(train[start : start + window]), fmean(train[-window:])
    if not (_rose(lowest, last, _noise(val)) and _rose(train_last, train_then, _noise(train)) and train_last < last):
        return None
    keeps = f"model.safetensors is of epoch {best_epoch}"
    patience = sufficient_patience(val)
    if val[best_epoch - 1] == min(val) and best_epoch + patience < len(rows):  # else the best one is by another metric
        keeps += f", after which --patience {patience} stops"
    return Finding(
        "overfitting",
        f"overfitting: from epoch {start + 1} on validation loss rose from {lowest:.4g} to {last:.4g} while train loss "
        f"fell from {train_then:.4g} to {train_last:.4g}; {keeps}",
        {"epoch": start + 1, "val_loss_then": lowest, "val_loss": last, "train_loss_then": train_then,
         "train_loss": train_last, "patience": patience},
    )  # fmt: skip


def sufficient_patience(val_losses: Sequence[float]) -> int:
    """Return a `--patience` with which these epochs would have reached their lowest loss: their longest wait, or 5."""
    improved, lowest = [0], math.inf
    for epoch, loss in enumerate(val_losses, 1):
        if loss < lowest:
            improved.append(epoch)
            lowest = loss
    return max(5, *(after - before for before, after in zip(improved, improved[1:], strict=False)))


def diverged(rows: Sequence[Row], best_epoch: int) -> Finding | None:
    """Train loss ended at several times its minimum."""
    train = [loss for row in rows if (loss := row.get("train_loss")) is not None]
    if len(train) != len(rows) or len(train) < LEAST_EPOCHS:
        return None
    start, lowest, last = _lowest_and_last(train, _window(rows))
    if not (0 < DIVERGED * lowest < last and _rose(lowest, last, _noise(train))):
        return None
    lr = max(row.get("lr") or 0 for row in rows)
    return Finding(
        "diverged",
        f"training diverged: train loss rose from {lowest:.4g} (epoch {start + 1}) to {last:.4g}; model.safetensors is "
        f"of epoch {best_epoch}; try --lr {lr / 10:g}",
        {"epoch": start + 1, "train_loss_then": lowest, "train_loss": last, "lr": lr / 10},
    )  # fmt: skip


def rate_died_away(rows: Sequence[Row]) -> Finding | None:
    """The learning rate was halved, again and again, to less than a thousandth, and train loss falls no more.

    A rate that changes nearly every epoch follows a schedule that ends low on purpose, and is none.
    """
    rates = [rate for row in rows if (rate := row.get("lr")) is not None]
    if not rates or len(rates) != len(rows) or len(set(rates)) > 1 + len(rates) / 5:
        return None
    if rates[-1] >= DEAD_RATE * max(rates):
        return None
    since = next(epoch for epoch, rate in enumerate(rates, 1) if rate < DEAD_RATE * max(rates))
    losses = [loss for row in rows if (loss := row.get("train_loss")) is not None]
    if len(losses) != len(rows) or losses[-1] < (1 - _CHANGE) * losses[since - 1]:
        return None
    return Finding(
        "rate",
        f"the learning rate died away: {rates[-1]:.1e} at the end, of {max(rates):.1e}, below a thousandth since epoch "
        f"{since} (train loss {losses[since - 1]:.4g} then, {losses[-1]:.4g} now); --epochs {since} comes as far",
        {
            "epoch": since,
            "lr_first": max(rates),
            "lr": rates[-1],
            "train_loss_then": losses[since - 1],
            "train_loss": losses[-1],
        },
    )


def stalled(rows: Sequence[Row]) -> Finding | None:
    """The lowest validation loss lies in the first half."""
    losses = [(loss, epoch) for epoch, row in enumerate(rows, 1) if (loss := row.get("val_loss")) is not None]
    lowest, epoch = min(losses, default=(0.0, len(rows)))
    if len(rows) < 2 * max(epoch, LEAST_EPOCHS):
        return None
    text = f"validation loss has not improved since epoch {epoch} ({lowest:.4g})"
    return Finding("stalled", text, {"epoch": epoch, "val_loss": lowest})


def collapsed(kl: float | None, options: object) -> Finding | None:
    """The posterior is N(0, I) for every image: `kl`, in nats a number of the latent, is next to nothing.

    Where the model's `options` have a `beta`, its weight in the loss, a smaller one is named.
    """
    if kl is None or kl >= COLLAPSED:
        return None
    beta, default = (getattr(each, "beta", None) for each in (options, type(options)))
    advice = ""
    if isinstance(beta, float) and beta > 0:
        advice = f"; train with --beta {smaller(beta, default if default else beta):g} instead of {beta:g}"
    return Finding(
        "collapsed",
        f"KL collapsed ({kl:.1e} nats a number): the latents hold next to nothing of an image, and all reconstructions "
        f"and samples look alike{advice}",
        {"kl": kl},
    )


def few_codes(rows: Sequence[Row]) -> Finding | None:
    """In the last epoch, fewer than half of the codes of a quantiser were in use."""
    usage, perplexity = ((rows[-1] if rows else {}).get(f"train_{name}") for name in ("codebook_usage", "perplexity"))
    if usage is None or perplexity is None or usage >= FEW_CODES:
        return None
    return Finding(
        "codebook",
        f"{100 * usage:.0f} % of the codes were in use in the last epoch, with a perplexity of {perplexity:.0f}: "
        "a smaller codebook would do as well",
        {"codebook_usage": usage, "perplexity": perplexity},
    )


def exploded(name: str, value: float, usual: float, step: int) -> Finding:
    """The part `name` of the loss rose to a `value` far above its running median `usual`, by `step`."""
    return Finding(
        "exploded",
        f"the loss '{name}' rose to {value:.2g} by step {step}, from a median of {usual:.2g}\n"
        "hint: a smaller --lr, --clip-norm 1",
        {"value": value, "median": usual, "step": step},
    )


def discriminator_won(row: Row) -> Finding | None:
    """The discriminator's mean loss in an epoch is next to nothing: it tells every reconstruction apart."""
    loss, epoch = row.get("train_discriminator"), row.get("epoch")
    if loss is None or epoch is None or loss >= WON:
        return None
    return Finding(
        "discriminator",
        f"the discriminator won: its loss was {loss:.1g} in epoch {epoch:.0f}, so it teaches nothing more\n"
        "hint: a larger --adversarial-weight, or a later --adversarial-start",
        {"loss": loss, "epoch": epoch},
    )


def not_finite(what: str, lr: float, default_lr: float, kept: str) -> str:
    """Return the error of a loss or gradient that is no number; `kept` says which checkpoint is left."""
    return f"{what} is not a finite number\nhint: try --lr {smaller(lr, default_lr):g} instead of {lr:g}; {kept}"


def smaller(value: float, default: float) -> float:
    """Return what to try instead of a weight or rate that is too large: the default, or a tenth of less than that."""
    return default if value > default else value / 10


def far_from_normal(divergence: float, posterior_std: float | None, latent_std: float) -> Finding | None:
    """Latents are not distributed as N(0, I): `divergence` from it in nats a number, and the standard deviations."""
    if divergence <= FAR:
        return None
    if posterior_std is None:
        figure = f"{divergence:.1f} nats a number; their standard deviation is {latent_std:.2f}"
    else:
        figure = (
            f"{divergence:.1f} nats a number; the posterior's standard deviation is {posterior_std:.2f} instead of 1"
        )
    return Finding(
        "far",
        f"the latents are far from N(0, I) ({figure}), so samples are noise; --prior mixture does better",
        {"divergence": divergence, "latent_std": latent_std},
    )


def shared_images(found: int, compared: int, example: tuple[str, str]) -> Finding:
    """So many of the `compared` validation images are training images too; `example` is such a pair of names."""
    mine, theirs = map(single_line, example)
    same = mine if mine == theirs else f"{mine} = {theirs}"
    return Finding(
        "shared",
        f"{found:,} of {count_of(compared, 'validation image')} stand in training too ({same}), so validation "
        "figures are better than those of new images",
        {"found": found, "compared": compared},
    )


def is_turned(sizes: Sequence[tuple[Size, Size]]) -> bool:
    """Whether all predictions (size, truth's size) have their sides swapped, as by a tool that ignores orientation."""
    return all(size == truth[::-1] != truth for size, truth in sizes)


def is_cropped(sizes: Sequence[tuple[Size, Size]]) -> bool:
    """Whether all predictions (size, truth's size) look cut or padded, not resized: few pixels, or another shape."""
    return all(_is_cropped(size, truth) for size, truth in sizes)


def _is_cropped(size: Size, truth: Size) -> bool:
    differences = [abs(a - b) for a, b in zip(size, truth, strict=True)]
    most = _CROPPED if size[0] * truth[1] == size[1] * truth[0] else _PADDED
    return all(
        difference <= min(most, _FRACTION * max(sides))
        for difference, sides in zip(differences, zip(size, truth, strict=True), strict=True)
    )


def _window(rows: Sequence[Row]) -> int:
    """Epochs of which a mean is taken, before means are compared."""
    return max(3, len(rows) // 10)


def _lowest_and_last(losses: Sequence[float], window: int) -> tuple[int, float, float]:
    """Return where the window of the lowest mean starts, that mean, and the mean of the last window."""
    means = [fmean(losses[start : start + window]) for start in range(len(losses) - window + 1)]
    start = min(range(len(means)), key=means.__getitem__)
    return start, means[start], means[-1]


def _noise(losses: Sequence[float]) -> float:
    """Return the standard deviation of the noise between epochs: of a median step, so that a trend counts little."""
    steps = [abs(after - before) for before, after in zip(losses, losses[1:], strict=False)]
    return 1.4826 * median(steps) / math.sqrt(2)


def _rose(before: float, after: float, noise: float) -> bool:
    return after - before > max(_NOISES * noise, _CHANGE * abs(before))
