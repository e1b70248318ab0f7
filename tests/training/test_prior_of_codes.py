"""`aecli train prior` and `aecli sample` for models with codes: an autoregressive prior over these."""

import json
import shutil

import numpy as np
import pytest
import torch

from aecli.configs import SampleConfig, TrainConfig
from aecli.data.decoding.decode import decode_fitted
from aecli.data.sources.registry import list_images
from aecli.inference.loaded_model import load_model as load_autoencoder
from aecli.models.autoregressive import Autoregressive
from aecli.progress import ignore
from aecli.runs.checkpoints import read_document
from aecli.sampling.prior_choice import choose_prior
from aecli.training.events import Finished, Interrupted
from aecli.training.loop import train
from tests.support.stopping import train_in_pieces
from tests.support.trained import NAMES, SIZE, TRAIN, VAL, assert_same_run, fails, ok, ok_json, png, pngs, rows

SMALL = {"width": 16, "depth": 1, "heads": 2, "dropout": 0.1}
OPTIONS = ["--width", "16", "-o", "depth=1", "-o", "heads=2"]
FSQ = ["-o", "bottleneck=fsq", "-o", "levels=5,3", "--latent-dim", "4"]
TRAIN_PRIOR = ["train", "prior", "--model", "coded", *OPTIONS, "--epochs", "2", "--batch-size", "4", "--device", "cpu",
               "--quiet"]  # fmt: skip


@pytest.fixture(scope="module")
def coded_once(trained_once, tmp_path_factory):
    """A run of a model whose latents are 2 codes of 15 at each of 4x4 places."""
    folder = tmp_path_factory.mktemp("coded")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained_once)
        ok("train", "resnet", *TRAIN, *FSQ, "-o", "depth=1", "--epochs", "1", "--out", folder / "coded", "--quiet")
    return folder / "coded"


@pytest.fixture
def coded(own, coded_once):
    """As `own`, with a copy of that run in `coded`."""
    shutil.copytree(coded_once, own / "coded")
    return own


def prior_config(out, **options):
    given = {"autoencoder": "coded", "data": "images", "val_fraction": 0.3, "image_size": SIZE, "fit": "crop",
             "batch_size": 3}  # fmt: skip
    return TrainConfig("prior", **{**given, "options": SMALL, "device": "cpu", "out": out, **options})


@pytest.mark.draws
def test_the_same_command_trains_a_prior_over_codes_and_samples_from_it(coded):
    ok(*TRAIN_PRIOR)
    run = coded / "runs/prior"
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["name"] == "prior" and read_document(run / "model.safetensors")["model"] == "autoregressive"
    expected = {"levels": [5, 3], "codebooks": 2, "side": 4, "dropout": 0.1}
    assert expected.items() <= config["model"]["options"].items()
    losses = [float(row["val_loss"]) for row in rows(run)]
    assert all(0 < loss < 1.5 * np.log(15) for loss in losses)  # nats a code of 15
    assert png(run / "previews/epoch-0002.png").std() > 0
    assert "was finished already" in ok(*TRAIN_PRIOR[:-1]).stdout
    ok("train", "prior", "--config", "runs/prior", "--out", "again", "--quiet")
    assert_same_run(run, coded / "again")

    sampling = ["sample", "--model", "coded", "--prior", "autoregressive", "--seed", "2"]
    ok(*sampling, "--n", "3", "--out", "three")
    ok(*sampling, "--n", "18", "--out", "many")
    for name in pngs(coded / "three"):
        assert (coded / f"three/{name}.png").read_bytes() == (coded / f"many/{name}.png").read_bytes()
    loaded = load_autoencoder("coded", coded / "runs")
    chosen = choose_prior(loaded, SampleConfig("coded", "autoregressive", runs=coded / "runs", seed=2), ignore)
    codes = chosen.sample(range(16))
    assert codes.shape == (16, 2, 4, 4) and codes.dtype == torch.int64 and 0 <= codes.min() and codes.max() < 15
    by_hand = loaded.decode(loaded.model.latents(codes))
    assert by_hand[1].permute(1, 2, 0).equal(torch.from_numpy(png(coded / "three/000001.png")))
    still = choose_prior(loaded, SampleConfig("coded", "autoregressive", runs=coded / "runs", temperature=0.0), ignore)
    drawn = still.sample(range(2))
    assert drawn[0].equal(drawn[1])
    assert ok_json("sample", "--model", "coded", "--n", "1", "--out", "s.png")["prior"] == "autoregressive"


def test_what_it_learns_are_the_codes_of_images_and_mirror_images(coded):
    seen = []
    predict = Autoregressive.predict

    def noting(self, examples, noise=None):
        if self.training:
            seen.extend(self.unwhiten(examples))
        return predict(self, examples, noise)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Autoregressive, "predict", noting)
        list(train(prior_config(coded / "flipped", epochs=1, batch_size=4, flip=True)))
    images = [image for image in list_images("images") if image.key not in VAL]
    pixels = np.stack([decode_fitted(image, SIZE, "crop").pixels for image in images]).transpose(0, 3, 1, 2)
    loaded = load_autoencoder("coded", coded / "runs")
    expected = []
    for each in (pixels, pixels[..., ::-1]):
        latents = torch.from_numpy(loaded.latents(loaded.batch(np.ascontiguousarray(each)))[0])
        codes = loaded.codes(latents)
        torch.testing.assert_close(loaded.model.latents(codes), latents, rtol=1e-6, atol=1e-6)
        assert loaded.decode(codes).equal(loaded.decode(latents))
        expected += codes
    assert sorted(each.flatten().tolist() for each in seen) == sorted(each.flatten().tolist() for each in expected)


def test_classes_are_learned_and_drawn_of(coded):
    for number, name in enumerate(NAMES):
        pet = coded / "pets" / ("cat", "dog")[number % 2] / f"{number}.png"
        pet.parent.mkdir(parents=True, exist_ok=True)
        pet.write_bytes((coded / f"images/{name}.png").read_bytes())
    ok(*TRAIN_PRIOR, "--data", "pets", "--labels", "folders", "--lr", "0.01")
    options = json.loads((coded / "runs/prior/config.json").read_text())["model"]["options"]
    assert options["classes"] == ["cat", "dog"]
    drawing = ["sample", "--model", "coded", "--n", "8", "--class"]
    ok(*drawing, "cat", "--out", "cats")
    ok(*drawing, "dog", "--out", "dogs")
    ok(*drawing, "dog", "--guidance", "40", "--out", "guided")
    cats, dogs, guided = (np.stack([png(coded / f"{name}/00000{i}.png") for i in range(8)])
                          for name in ("cats", "dogs", "guided"))  # fmt: skip
    assert not np.array_equal(cats, dogs) and not np.array_equal(dogs, guided)


def test_stopped_anywhere_it_ends_as_if_never_stopped(coded):
    config = prior_config(coded / "whole", epochs=3, lr=1e-3, ema=0.9)
    assert isinstance(list(train(config))[-1], Finished)
    ends = train_in_pieces(config.replace(out=coded / "pieces", checkpoint_every=1e-9))
    assert sum(isinstance(end, Interrupted) for end in ends) >= 2
    assert_same_run(coded / "whole", coded / "pieces")


def test_fitted_priors_give_codes_too(coded):
    loaded = load_autoencoder("coded", coded / "runs")
    for prior in ("gaussian", "mixture"):
        codes = choose_prior(loaded, SampleConfig("coded", prior, runs=coded / "runs"), ignore).sample(range(3))
        assert codes.dtype == torch.int64 and codes.shape == (3, 2, 4, 4)
    ok("sample", "--model", "coded", "--prior", "gaussian", "--n", "2")


def test_a_dry_run_knows_its_shape(coded):
    dry = ok_json("train", "prior", "--model", "coded", *OPTIONS, "--epochs", "7", "--dry-run")
    assert dry["latent_shape"] == [4, 4, 4] and dry["train_images"] == 2 * (len(NAMES) - len(VAL))  # the recipe mirrors
    assert dry["seconds_per_step"] > 0 and dry["step_gflop"] > 0


@pytest.mark.parametrize(
    "status, args, words",
    [
        (1, ["sample", "--model", "coded", "--prior", "flow"], ["--prior flow", "codes", "--prior autoregressive"]),
        (1, ["sample", "--model", "coded", "--prior", "autoregressive"], ["none was trained", "aecli train prior"]),
        (1, ["sample", "--model", "coded", "--prior", "normal"], ["N(0, I)", "autoregressive"]),
        (1, ["sample", "--model", "vae", "--prior", "autoregressive"], ["no codes"]),
        (2, ["sample", "--model", "coded", "--steps", "5"], ["--steps 5", "leave --steps out"]),
        (2, [*TRAIN_PRIOR, "-o", "channels=4"], ["channels", "no such option"]),
        (2, [*TRAIN_PRIOR, "-o", "codebooks=4"], ["codebooks=4", "has 2"]),
        (2, [*TRAIN_PRIOR, "--pixel-loss", "l1"], ["--pixel-loss", "likelihood"]),
    ],
)
def test_wrong_use_is_an_error(coded, status, args, words):
    message = fails(status, *args)
    assert all(word in message for word in words), message
