"""Learning rates of a step against torch's schedulers."""

import math

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau

from aecli.configs.train import OptimizationConfig
from aecli.training.schedules import build_schedule


def schedule(total=100, patience=2, **options):
    return build_schedule(OptimizationConfig(lr=0.01, **options), patience, total)


def test_plateau_is_torchs_whatever_was_asked_before():
    losses = [1.0, 0.9, 0.95, 0.94, 0.93, 0.92, 0.5, 0.6, 0.6, 0.6, 0.6, *[0.6] * 90]
    optimizer = SGD([torch.zeros(())], lr=0.01)
    theirs = ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    rows, ours, expected = [], schedule(), []
    for step, loss in enumerate(losses):
        theirs.step(loss)
        rows.append({"train_loss": loss})
        expected.append(optimizer.param_groups[0]["lr"])
        assert ours(step, rows) == expected[-1]
    assert expected[-1] < 1e-7  # where torch no longer halves it
    assert [schedule()(0, rows[: count + 1]) for count in range(len(rows))] == expected
    other = [{"train_loss": 0.1}, *rows[1:]]
    assert ours(0, other[:1]) == 0.01 and ours(0, rows) == expected[-1]


def test_cosine_falls_to_zero_at_the_end_as_torchs_does():
    optimizer = SGD([torch.zeros(())], lr=0.01)
    theirs, ours = CosineAnnealingLR(optimizer, 100), schedule(schedule="cosine")
    for step in range(101):
        assert ours(step, []) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()
    assert ours(100, []) == 0 and ours(0, []) == 0.01


@pytest.mark.parametrize("kind", ["constant", "cosine", "plateau"])
def test_warming_up_is_linear_and_ends_at_the_rate(kind):
    ours = schedule(schedule=kind, warmup=10)
    assert [ours(step, []) for step in range(10)] == pytest.approx([0.001 * (step + 1) for step in range(10)])
    if kind == "cosine":
        assert ours(55, []) == pytest.approx(0.005) and ours(100, []) == pytest.approx(0)
        assert ours(32, []) == pytest.approx(0.005 * (1 + math.cos(math.pi * 22 / 90)))
    else:
        assert ours(55, []) == 0.01
