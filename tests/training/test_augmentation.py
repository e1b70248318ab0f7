"""`--turns` and `--resized-crops`: what is trained and validated on, and what is fitted before the first step."""

from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from aecli.cli.live import started_line
from aecli.configs import EvalConfig, ReconstructConfig, TrainConfig
from aecli.data.decoding.decode import fit
from aecli.errors import CheckpointError, ConfigError
from aecli.evaluation.paired import evaluate
from aecli.inference.reconstruct import reconstruct
from aecli.models import registry
from aecli.progress import Notice, ignore
from aecli.runs.folder import RunFolder
from aecli.runtime.device import place
from aecli.runtime.distributed import Distributed
from aecli.training.dry_run import estimate
from aecli.training.events import Started
from aecli.training.inputs import preparation
from aecli.training.inputs.image_sets import gather_images, list_sources
from aecli.training.inputs.latent_sets import resolve_model
from aecli.training.inputs.loaders import DatasetLoader
from aecli.training.inputs.preparation import preparation_batches
from aecli.training.state_schema import Counters
from tests.support.data import finish
from tests.support.images import encoded, picture, read_rgb
from tests.support.shards import write_tars
from tests.support.trained import rows
from tests.training.test_loop import run

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def config(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for seed in range(10):
        (folder / f"{seed}.png").write_bytes(encoded(picture(40 + 3 * seed, 90 - seed, seed)))
    return TrainConfig("ae", data=str(folder), val_fraction=0.4, epochs=1, image_size=32, flip=True, turns=True,
                       resized_crops=True, batch_size=3, lr=1e-3, options={"width": 4}, device="cpu", precision="fp32",
                       compile="off", cache="off", out=tmp_path / "mine", runs=tmp_path / "runs")  # fmt: skip


def gathered(config):
    (train, val, _), reports = finish(gather_images(config, list_sources(config), lambda: False))
    return train, val, [each.text for each in reports if isinstance(each, Notice)]


def prepared(train, config, limit):
    batches = list(preparation_batches(train, config, place("cpu", "fp32", training=True), limit))
    return torch.cat(batches)


@pytest.mark.parametrize("how", ["squash", "crop", "random-crop"])
def test_validation_is_on_whole_pictures_as_fit_says(config, how):
    plain = config.replace(fit=how, flip=False, turns=False, resized_crops=False)
    (train, val, _), (_, expected, _) = gathered(config.replace(fit=how)), gathered(plain)
    assert len(train) + len(val) == 10 and len(val) == len(expected) > 0
    np.testing.assert_array_equal(val.evenly_spaced(9), expected.evenly_spaced(9))
    assert (val.whole is None) == (how != "random-crop")
    first = train.images[train.rows[0]].transpose(1, 2, 0)  # what previews show
    shown = fit(first, 32, "squash" if how == "squash" else "crop").transpose(2, 0, 1)
    np.testing.assert_array_equal(train.evenly_spaced(1)[0], shown)


def test_a_run_says_it_and_its_numbers_are_those_of_reconstruct_and_eval(config, tmp_path):
    reports, _ = run(config)
    started = next(each for each in reports if isinstance(each, Started))
    assert started.augmentation == "flips, quarter turns, crops of any scale" and started_line(started)
    options = RunFolder(tmp_path / "mine").read_config()["options"]
    assert options["turns"] is options["resized_crops"] is True and options["fit"] == "squash"
    reconstruct(ReconstructConfig(str(tmp_path / "mine"), out=tmp_path / "out"))
    truth = tmp_path / "truth"
    truth.mkdir()
    for path in (tmp_path / "out").iterdir():
        Image.fromarray(fit(read_rgb(tmp_path / "photographs" / path.name), 32, "squash")).save(truth / path.name)
    (found,) = evaluate(EvalConfig(str(truth), (str(tmp_path / "out"),), metrics=("psnr",))).results
    best = min(rows(tmp_path / "mine"), key=lambda row: float(row["val_loss"]))
    assert float(best["val_psnr"]) == found.scores["psnr"].mean
    with pytest.raises(CheckpointError, match="--turns"):
        run(config.replace(turns=False))


def test_workers_change_no_batch_and_epochs_differ(config):
    train, _, _ = gathered(config)
    placement = place("cpu", "fp32", training=True)
    with Distributed() as distributed:
        loader = DatasetLoader(train, config, placement, distributed)
        epochs = [torch.cat(list(loader.epoch(Counters(epoch=epoch)))) for epoch in range(2)]
        assert not torch.equal(*epochs)
        others, _, _ = gathered(config.replace(workers=1))
        again = DatasetLoader(others, config.replace(workers=1), placement, distributed)
        assert torch.equal(epochs[1], torch.cat(list(again.epoch(Counters(epoch=1)))))
        (rest,) = again.epoch(Counters(epoch=1, batch=again.batches - 1))
        assert torch.equal(epochs[1][-len(rest) :], rest)


def test_pictures_of_one_scale_are_told(config):
    assert not gathered(config)[2]
    notices = gathered(config.replace(image_size=96))[2]
    assert any("--resized-crops" in text and "--image-size 96" in text for text in notices)


def test_nothing_is_held_out_and_other_images_are_validated_on(config):
    train, val, _ = gathered(config.replace(val_fraction=0.0))
    assert (len(train), len(val)) == (10, 0)
    train, val, _ = gathered(config.replace(val_data=config.data.source))
    assert len(train) == len(val) == 10 and val.whole is None


class TestPreparation:
    def test_it_takes_augmented_images_of_more_epochs_up_to_its_limit(self, config):
        train, _, _ = gathered(config)
        found = prepared(train, config, 41)
        assert found.shape == (41, 3, 32, 32) and -1 <= found.min() < found.max() <= 1
        assert len(torch.unique(found.flatten(1), dim=0)) == 41
        assert torch.equal(found, prepared(train, config, 41)) and torch.equal(found[:5], prepared(train, config, 5))
        assert not torch.equal(found, prepared(train, config.replace(seed=1), 41))

    def test_it_draws_what_no_step_draws_and_changes_none(self, config):
        train, _, _ = gathered(config)
        placement = place("cpu", "fp32", training=True)
        with Distributed() as distributed:
            loader = DatasetLoader(train, config, placement, distributed)
            before, state = torch.cat(list(loader.epoch(Counters()))), torch.random.get_rng_state()
            found = prepared(train, config, len(train))
            assert torch.equal(before, torch.cat(list(loader.epoch(Counters()))))
        assert torch.equal(state, torch.random.get_rng_state())
        assert not any(torch.equal(one, other) for one in before for other in found)

    def test_without_augmentation_one_epoch_is_all(self, config):
        plain = config.replace(flip=False, turns=False, resized_crops=False)
        train, _, _ = gathered(plain)
        found = (prepared(train, plain, 100) + 1) * 127.5
        expected = train.images[train.rows]
        assert sorted(found.sum((1, 2, 3)).round().tolist()) == sorted(expected.sum((1, 2, 3)).tolist())

    def test_a_stream_gives_some_too(self, config, tmp_path):
        write_tars(tmp_path / "shards", [9, 6])
        streamed = config.replace(data=str(tmp_path / "shards" / "*.tar"), val_fraction=0.1, steps=4, shuffle_buffer=9)
        stream, _, _ = gathered(streamed)
        found = prepared(stream, streamed, 10)
        assert found.shape == (10, 3, 32, 32) and torch.equal(found, prepared(stream, streamed, 10))
        first = next(islice(stream.batches((0, 3)), 1)).pixels
        assert not torch.equal(first / 127.5 - 1, found[:3])

    def test_a_model_is_fitted_to_them(self, config, tmp_path, monkeypatch):
        monkeypatch.setattr(preparation, "_PIXELS", 20 * 32**2)
        config = config.replace(model="pca", options={"latent_dim": 8})
        run(config)
        expected = registry.build("pca", registry.resolve_options("pca", {"latent_dim": 8}))
        found = load_file(tmp_path / "mine" / "model.safetensors")
        train, _, _ = gathered(config)
        expected.prepare([prepared(train, config, 20)])
        for key, tensor in expected.state_dict().items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [{"epochs": 2}, {"steps": 5, "epochs": 1000}])
def test_only_images_that_are_taken_often_are_turned_and_cropped(config, tmp_path, length):
    config = config.replace(**length)
    train, _, _ = gathered(config)
    passes = length.get("steps", 0) * 3 / len(train) or 2
    often, seldom = (config.replace(augment_above=passes + more, out=tmp_path / str(more)) for more in (-0.01, 0.01))
    assert estimate(often, ignore).augmentation == "flips, quarter turns, crops of any scale"
    assert estimate(seldom, ignore).augmentation == "flips"
    run(config)
    run(config.replace(turns=False, resized_crops=False, out=tmp_path / "plain"))
    run(often)
    run(seldom, stop_after=2)
    run(seldom)
    for name, same in (("0.01", "plain"), ("-0.01", "mine")):
        one, other = (load_file(tmp_path / each / "model.safetensors") for each in (name, same))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_longer_run_goes_on_augmenting_as_it_began(config, tmp_path):
    run(config.replace(augment_above=1, epochs=1))
    reports, _ = run(config.replace(augment_above=1, epochs=2))
    assert next(each for each in reports if isinstance(each, Started)).augmentation == "flips"
    assert RunFolder(tmp_path / "mine").read_config()["augmentation"] == "flips"
    assert estimate(config.replace(augment_above=1, epochs=3), ignore).augmentation == "flips"


@pytest.mark.parametrize("option", ["turns", "resized_crops"])
def test_a_prior_takes_images_as_they_are(config, option):
    plain = config.replace(turns=False, resized_crops=False)
    prior = plain.replace(model="prior", autoencoder="mine", options={}, **{option: True})
    with pytest.raises(ConfigError, match=f"--{option.replace('_', '-')}: .*\nhint: --flip"):
        resolve_model(prior, None)
