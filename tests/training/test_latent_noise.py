"""A run with noise on its latents, and a loss of their scale equivariance: resumed or accumulated, it is one run."""

import pytest

from aecli.training.events import Finished, Interrupted
from tests.support.trained import assert_same_run, rows
from tests.training.test_loop import run

OPTIONS = {"bottleneck": "kl", "latent_noise": 0.5, "scale_equivariance": 0.25, "width": 4, "depth": 1,
           "latent_dim": 4, "downsampling": 8}  # fmt: skip


@pytest.mark.usefixtures("no_pictures")
def test_stopped_or_accumulated_it_is_one_run(config, tmp_path):
    config = config.replace(model="resnet", options=OPTIONS, epochs=2)
    run(config.replace(out=tmp_path / "whole"))
    parts = config.replace(out=tmp_path / "parts")
    assert isinstance(run(parts, 3)[1], Interrupted)
    assert isinstance(run(parts)[1], Finished)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    run(config.replace(out=tmp_path / "accumulated", grad_accum=2))
    whole, accumulated = (
        [float(row["train_loss"]) for row in rows(tmp_path / name)] for name in ("whole", "accumulated")
    )
    assert accumulated == pytest.approx(whole, rel=1e-4)
