"""Every field of a config is checked, whichever way its value comes."""

import pytest

from aecli.configs import EvalConfig, SampleConfig, TrainConfig
from aecli.errors import ConfigError


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EvalConfig("truth", pred=(3,)), "--pred 3: expected a list of texts"),
        (lambda: EvalConfig("truth", pred="a"), "--pred 'a': expected a list"),
        (
            lambda: EvalConfig("truth", pred=("a",), metrics=("mse",)),
            "--metrics mse: expected some of psnr, ssim, lpips, psnr-y, ssim-y",
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
        (lambda: TrainConfig("vae", fit="stretch"), "--fit stretch: expected one of squash, crop"),
    ],
)
def test_the_message_names_flag_value_and_what_is_expected(make, message):
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message
