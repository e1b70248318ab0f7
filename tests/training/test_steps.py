"""`--steps` in place of epochs, and `--grad-accum`: micro-batches change nothing but batch statistics."""

import pytest

from aecli.configs import TrainConfig
from aecli.errors import CheckpointError, ConfigError
from aecli.models.ae import AE
from aecli.recipes.layering import layer
from aecli.training import loop
from aecli.training.events import EpochReport, Finished, Interrupted, Started
from aecli.training.inputs.micro_batches import largest_micro_batch, smallest_micro_batch
from tests.support.trained import assert_same_run, rows
from tests.training.test_loop import run

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def config(tmp_path, image_folder):
    folder = image_folder(*(f"{seed:02d}.png" for seed in range(12)), folder="photographs", height=40, width=40)
    return TrainConfig(
        model="ae", data=str(folder), val_fraction=0.0, image_size=32, batch_size=4, lr=1e-3, options={"width": 4},
        device="cpu", precision="fp32", runs=tmp_path / "runs", out=tmp_path / "mine",
    )  # fmt: skip


class TestSteps:
    def test_end_within_an_epoch_which_is_then_reported_as_one(self, config, tmp_path):
        reports, end = run(config.replace(steps=5))  # epochs of 3
        assert isinstance(end, Finished) and end.epochs == 2
        assert [row["step"] for row in rows(tmp_path / "mine")] == ["3", "5"]
        assert next(report for report in reports if isinstance(report, Started)).epochs == 2
        assert [report.row["step"] for report in reports if isinstance(report, EpochReport)] == [3, 5]
        _, again = run(config.replace(steps=5))
        assert again.was_finished

    def test_the_first_of_them_are_those_of_epochs(self, config, tmp_path):
        run(config.replace(steps=6))
        run(config.replace(epochs=2, out=tmp_path / "epochs"))
        assert rows(tmp_path / "mine") == rows(tmp_path / "epochs")

    @pytest.mark.parametrize("stop_after", [1, 3, 4])
    def test_a_run_stopped_and_continued_is_the_run_never_stopped(self, config, tmp_path, stop_after):
        run(config.replace(steps=5, out=tmp_path / "whole"))
        _, end = run(config.replace(steps=5), stop_after)
        assert isinstance(end, Interrupted)
        run(config.replace(steps=5))
        assert_same_run(tmp_path / "whole", tmp_path / "mine")

    def test_may_grow_from_the_end_of_an_epoch_and_from_nowhere_else(self, config, tmp_path):
        run(config.replace(steps=9, out=tmp_path / "whole"))
        run(config.replace(steps=3))
        run(config.replace(steps=9))
        assert_same_run(tmp_path / "whole", tmp_path / "mine")
        run(config.replace(steps=10))
        with pytest.raises(CheckpointError, match="--steps 12: the run ended after 10 steps"):
            run(config.replace(steps=12))

    def test_may_not_shrink_nor_turn_into_epochs(self, config):
        run(config.replace(steps=6))
        with pytest.raises(CheckpointError, match="--steps 5: .*6 steps"):
            run(config.replace(steps=5))
        with pytest.raises(CheckpointError, match="--steps 6, not none"):
            run(config.replace(epochs=2))

    def test_and_epochs_exclude_each_other(self, tmp_path):
        with pytest.raises(ConfigError, match="--steps and --epochs: give one"):
            layer("vae", {"steps": 5, "epochs": 2})
        (tmp_path / "mine.toml").write_text("steps = 5\n")
        assert layer("vae", {}, tmp_path / "mine.toml").optimization.steps == 5
        assert layer("vae", {"epochs": 2}, tmp_path / "mine.toml").optimization.steps is None
        assert layer("vae", {"recipe": "quick", "steps": 5}).optimization.steps == 5


class TestAccumulating:
    @pytest.mark.parametrize(
        "given",
        [
            {"grad_accum": 0}, {"grad_accum": 5}, {"grad_accum": 2.0}, {"steps": 0}, {"epoch_steps": 0},
            {"shuffle_buffer": 0}, {"sync_batchnorm": "maybe"},
        ],
    )  # fmt: skip
    def test_invalid_values_are_refused(self, config, given):
        with pytest.raises(ConfigError, match="--" + next(iter(given)).replace("_", "-")):
            config.replace(**given)

    @pytest.mark.parametrize(
        ("count", "accumulate", "size", "smallest"),
        [(32, 4, 1, 8), (9, 4, 1, 4), (32, 4, 2, 4), (3, 4, 1, 3), (1, 4, 2, 1)],
    )
    def test_a_short_batch_has_fewer_micro_batches(self, config, count, accumulate, size, smallest):
        assert smallest_micro_batch(count, config.replace(batch_size=32, grad_accum=accumulate), size) == smallest

    def test_the_largest_micro_batch(self, config):
        class Alone:
            rank, world_size = 0, 1

        assert largest_micro_batch(config.replace(batch_size=32, grad_accum=5), Alone()) == 7

    def test_a_step_has_as_many_passes(self, config, monkeypatch):
        passes = []
        real = AE.predict

        def watched(model, images, noise=None):
            if model.training:
                passes.append(len(images))
            return real(model, images, noise)

        monkeypatch.setattr(AE, "predict", watched)
        list(loop.train(config.replace(steps=2, grad_accum=2)))
        assert passes == [2, 2, 2, 2]

    def test_may_change_within_a_run(self, config):
        run(config.replace(steps=3))
        _, end = run(config.replace(steps=6, grad_accum=2))
        assert end.epochs == 2
