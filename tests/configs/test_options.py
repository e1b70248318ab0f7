"""Every field of a config is checked, whichever way its value comes."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from aecli.configs import (
    EvalConfig,
    GridConfig,
    InterpolateConfig,
    ModelsConfig,
    ReconstructConfig,
    SampleConfig,
    TrainConfig,
    TraverseConfig,
)
from aecli.configs.train import train_options
from aecli.errors import ConfigError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GridConfig(models=(3,)), "--model 3: expected a list of texts"),
        (lambda: EvalConfig("truth", pred="a"), "--pred 'a': expected a list"),
        (
            lambda: EvalConfig("truth", pred=("a",), metrics=("mse",)),
            "--metrics mse: expected some of psnr, ssim, lpips, ms-ssim, dists, psnr-y, ssim-y, fid, kid, fd-alex, "
            "kd-alex",
        ),
        (lambda: SampleConfig("vae", n=0), "--n 0: expected a whole number from 1 to 1000000"),
        (
            lambda: SampleConfig("vae", steps=3, prior="normal"),
            "--steps 3: expected --prior flow, the only one with steps",
        ),
        (lambda: TrainConfig("vae", ema=1.0), "--ema 1.0: expected a number above 0 and below 1, such as 0.999"),
        (
            lambda: TrainConfig("vae", val_fraction=1.0),
            "--val-fraction 1.0: expected a number of at least 0 and below 1",
        ),
        (lambda: TrainConfig("vae", epochs="3"), "--epochs '3': expected a whole number of at least 1"),
        (lambda: TrainConfig("vae", fit="stretch"), "--fit stretch: expected one of squash, crop, random-crop"),
    ],
)
def test_the_message_names_flag_value_and_what_is_expected(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize("make", [TrainConfig, SampleConfig, ReconstructConfig], ids=lambda make: make.__name__)
def test_paths_are_given_as_text_or_path(make):
    one, other = make("vae", out="a/b", runs="~/r"), make("vae", out=Path("a/b"), runs=Path("~/r"))
    assert one == other
    run = one.run if make is TrainConfig else one
    assert run.out == Path("a/b") and run.runs == Path.home() / "r"


def test_sources_and_models_are_given_as_text_or_path():
    assert TrainConfig("vae", data=Path("photos"), val_data=Path("~/v")) == TrainConfig("vae", "photos", val_data="~/v")
    assert EvalConfig(Path("t"), pred=[Path("p")]) == EvalConfig("t", pred=("p",))
    assert GridConfig(models=(Path("runs/vae"),)).models == ("runs/vae",)


def test_numbers_of_numpy_are_numbers():
    config = TrainConfig("vae", epochs=np.int64(3), lr=np.float32(0.5), val_fraction=0, options={"width": np.int8(8)})
    values = (
        config.optimization.epochs,
        config.optimization.lr,
        config.data.val_fraction,
        config.model.options["width"],
    )
    assert [(type(value), value) for value in values] == [(int, 3), (float, 0.5), (float, 0.0), (int, 8)]
    assert SampleConfig("vae", n=np.uint8(5)).n == 5


# What no option takes, whatever its type.
FOREIGN = [b"x", object(), 1j, {}, {"a": 1}, np.zeros(3), np.bool_(True), len, "a\0b", 10**5000, float("nan"), (1, "a")]
REQUIRED = {EvalConfig: {"gt": "a", "pred": ("b",)}, InterpolateConfig: {"first": "a", "second": "b", "model": "vae"},
            GridConfig: {}, ModelsConfig: {}}  # fmt: skip
CONFIGS = (ReconstructConfig, SampleConfig, InterpolateConfig, TraverseConfig, EvalConfig, GridConfig, ModelsConfig)


def fields_of_configs():
    """Each config's name, its field, and a function that makes it with that field's value."""
    for each in train_options():
        yield "TrainConfig", each.name, lambda value, name=each.name: TrainConfig(**{"model": "vae", name: value})
    for name in ("model", "options", "model_defaults"):
        yield "TrainConfig", name, lambda value, name=name: TrainConfig(**{"model": "vae", name: value})
    for config in CONFIGS:
        for field in dataclasses.fields(config):
            given = REQUIRED.get(config, {"model": "vae"})
            yield (
                config.__name__,
                field.name,
                lambda value, config=config, given=given, name=field.name: config(**{**given, name: value}),
            )


@pytest.mark.parametrize(("config", "name", "make"), list(fields_of_configs()))
def test_foreign_values_are_refused_by_name(config, name, make):
    for value in FOREIGN:
        if name in ("options", "model_defaults") and isinstance(value, dict):
            continue
        with pytest.raises(ConfigError) as caught:
            make(value)
        message = str(caught.value)
        shown = {"autoencoder": "model", "classes": "class"}.get(name, name)
        assert re.search(shown.removesuffix("s").replace("_", "[-_]"), message), message
        assert message.replace("\nhint: ", " ").isprintable() and len(message) < 400


@pytest.mark.parametrize(
    "wrong", [{"flip": 1}, {"epochs": True}, {"lr": "0.1"}, {"workers": 2.0}, {"seed": None}, {"options": {3: 4}},
              {"image_size": 10**30}],
)  # fmt: skip
def test_no_value_is_taken_for_one_of_another_type(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)).replace("_", "-")):
        TrainConfig("vae", **wrong)
