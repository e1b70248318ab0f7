"""A part of the loss that explodes, and a discriminator that wins, are said; what only grows is not."""

from contextlib import suppress

import pytest

from aecli.diagnosis import discriminator_won
from aecli.errors import TrainingError
from aecli.progress import Notice
from aecli.training import loop, sync
from aecli.training.divergence import DivergenceMonitor
from aecli.training.state_schema import Counters


def said(kls, beta=1.0, recon=0.1):
    """What is said of epochs of 10 batches, one synchronisation a batch, with those values of KL."""
    monitor, found, sums = DivergenceMonitor(("recon", "kl"), {"recon": 1.0, "kl": beta}), [], [0.0] * 3
    for step, kl in enumerate(kls):
        epoch, batch = divmod(step, 10)
        sums = [0.0] * 3 if batch == 0 else sums
        sums = [total + value for total, value in zip(sums, (recon + beta * kl, recon, kl), strict=True)]
        found += [(step, text) for text in monitor.update(sums, Counters(epoch, step + 1, batch + 1))]
    return found


def test_an_explosion_is_said_once_with_its_step_and_figures():
    ((step, text),) = said([2.0] * 25 + [1e8] * 10)
    assert step == 25 and "'kl' rose to 1e+08 by step 26, from a median of 2\n" in text
    assert "hint: a smaller --lr, --clip-norm 1" in text


def test_growth_and_what_counts_for_nothing_are_not_said():
    assert said([2.0 * 1.1**step for step in range(60)]) == []
    assert said([1e-6] * 25 + [1.0] * 10, beta=1e-3) == []  # a thousandth of the loss
    assert said([2.0] * 2 + [1e8] * 5) == []  # no median yet


def test_a_discriminator_wins_where_its_loss_is_nothing():
    assert discriminator_won({"epoch": 3, "train_discriminator": 0.4}) is None
    assert (
        discriminator_won({"epoch": 3}) is None and discriminator_won({"epoch": 3, "train_discriminator": None}) is None
    )
    assert "in epoch 3" in discriminator_won({"epoch": 3, "train_discriminator": 1e-6}).text


@pytest.mark.usefixtures("no_pictures")
def test_a_run_at_a_rate_far_too_high_says_so_and_one_at_its_own_does_not(config, monkeypatch):
    monkeypatch.setattr(sync, "SYNC_INTERVAL_SECONDS", 0.0)  # after every step
    config = config.replace(epochs=6, schedule="constant", warmup=20, val_fraction=0.0)
    for lr, says in ((1e-3, False), (1.0, True)):
        texts = []
        with suppress(TrainingError):  # numbers that are not finite may follow
            for report in loop.train(config.replace(lr=lr, out=config.run.runs / str(lr))):
                texts += [report.text] if isinstance(report, Notice) else []
        assert any("rose to" in text for text in texts) == says, texts
