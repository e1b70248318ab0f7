"""`aecli train prior`: a flow trained on an autoencoder's latents is a run like any other."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aecli.configs import TrainConfig
from aecli.configs.train import DataConfig
from aecli.data.decoding.decode import decode_fitted
from aecli.data.sources.registry import list_images
from aecli.errors import ConfigError, DataError, ModelError
from aecli.inference.loaded_model import load_model as load_autoencoder
from aecli.models import registry
from aecli.runs.checkpoints import fingerprint, load, load_model, read_document, save
from aecli.training.events import EpochReport, Finished, Interrupted
from aecli.training.inputs.image_sets import gather_images, list_sources
from aecli.training.inputs.latent_sets import spatial_shape
from aecli.training.loop import train
from tests.support.data import finish
from tests.support.flows import SMALL, TRAIN_PRIOR
from tests.support.ranks import run_ranks
from tests.support.shards import write_tars
from tests.support.stopping import train_in_pieces
from tests.support.trained import (
    NAMES,
    SIZE,
    TRAIN,
    VAL,
    assert_same_run,
    fails,
    invoke,
    ok,
    ok_json,
    png,
    rows,
    write_images,
)

ROOT = Path(__file__).parent.parent.parent


def test_a_latent_without_places_is_one_of_side_1():
    assert spatial_shape((7,)) == (7, 1, 1)
    assert spatial_shape((7, 3, 3)) == (7, 3, 3)
    for shape in [(7, 3, 4), (7, 3), ()]:
        with pytest.raises(ModelError, match="latents of shape"):
            spatial_shape(shape)


def prior_config(out, **options):
    given = {"autoencoder": "vae", "data": "images", "val_fraction": 0.3, "image_size": SIZE, "batch_size": 3}
    return TrainConfig("prior", **{**given, "options": SMALL, "device": "cpu", "out": out, **options})


def config_of(run):
    return json.loads((run / "config.json").read_text())


@pytest.mark.draws
def test_a_prior_is_a_run_like_any_other(own):
    ok(*TRAIN_PRIOR)
    run = own / "runs/prior"
    assert {"config.json", "curves.png", "last.safetensors", "metrics.csv", "model.safetensors", "previews"} <= {
        path.name for path in run.iterdir()
    }
    config = config_of(run)
    weights = (own / "runs/vae/model.safetensors").resolve()
    assert config["options"]["autoencoder"] == {"path": str(weights), "sha256": fingerprint(weights)}
    assert config["split"]["train"] == len(NAMES) - len(VAL) and config["split"]["val"] == len(VAL)
    assert config["options"]["image_size"] == SIZE
    assert config["model"]["options"] == {
        **SMALL, "dropout": 0.0, "latent_channels": 64, "side": 1, "patch": 1, "whitening": "component",
        "base": "gaussian", "classes": [],
    }  # fmt: skip
    table = rows(run)
    assert [row["val_psnr"] for row in table] == [""] * 3
    assert all(float(row["val_loss"]) > 0 for row in table)
    sheet = png(run / "previews/epoch-0003.png")
    assert sheet.std() > 0
    assert "was finished already" in ok(*TRAIN_PRIOR[:-1]).stdout


def test_stopped_anywhere_it_ends_as_if_never_stopped(own):
    config = prior_config(own / "whole", epochs=4, lr=1e-3, ema=0.9)
    assert isinstance(list(train(config))[-1], Finished)

    ends = train_in_pieces(config.replace(out=own / "pieces", checkpoint_every=1e-9))
    assert sum(isinstance(end, Interrupted) for end in ends) >= 3
    assert_same_run(own / "whole", own / "pieces")


def test_two_processes_take_the_steps_of_one(own, monkeypatch):
    ok(*TRAIN_PRIOR, "--precision", "fp32", "--out", "one")
    monkeypatch.chdir(ROOT)
    statuses, _, errors = run_ranks(own, [*TRAIN_PRIOR, "--precision", "fp32", "--out", "two"], 2)
    assert statuses == [0, 0], errors
    one, two = (rows(own / name) for name in ("one", "two"))
    assert len(one) == len(two) == 3
    for key in ("train_loss", "val_loss"):
        assert [float(row[key]) for row in two] == pytest.approx([float(row[key]) for row in one], rel=1e-4)


def test_the_same_prior_repeated_from_its_folder(own):
    ok(*TRAIN_PRIOR)
    ok("train", "prior", "--config", "runs/prior", "--out", "again", "--quiet")
    assert_same_run(own / "runs/prior", own / "again")


OLD_NAMES = {
    "proj_in": "read", "proj_out": "write", "pos_embed": "places", "time_mlp": "time", "final_modulation": "shift",
    "modulation": "condition", "qkv": "attend", "attention_out": "mix", "mlp": "perceptron",
}  # fmt: skip


def with_old_names(path):
    """Write a checkpoint again with the parameters' first names."""
    tensors, document = load(path)
    old = {".".join(OLD_NAMES.get(part, part) for part in key.split(".")): value for key, value in tensors.items()}
    assert any("read.weight" in key for key in old) and not any("proj_in" in key for key in old)
    save_file(old, path, {"format": "pt", "aecli": json.dumps(document)})


def test_checkpoints_with_the_old_names_of_parameters_load_and_resume(own):
    # Its last epoch is its best.
    command = [*TRAIN_PRIOR, "--schedule", "constant", "--no-flip", "-o", "whitening=common"]
    ok(*command)
    ok(*command, "--epochs", "2", "--out", "old")
    weights = load_model(own / "old/model.safetensors")[0].state_dict()
    for name in ("model.safetensors", "last.safetensors"):
        with_old_names(own / "old" / name)
    again = load_model(own / "old/model.safetensors")[0].state_dict()
    assert all(torch.equal(again[key], value) for key, value in weights.items())
    ok(*command, "--out", "old")
    assert_same_run(own / "runs/prior", own / "old")


def test_its_images_are_those_of_the_autoencoders_run_by_default(own):
    from aecli.recipes.layering import layer

    recorded = config_of(own / "runs/vae")["options"]
    config = layer("prior", {"autoencoder": "vae"})
    assert (config.data.source, config.data.val_fraction, config.data.image_size) == (recorded["data"], 0.3, SIZE)
    assert (config.optimization.batch_size, config.optimization.ema) == (64, 0.99)  # of the model's recipe
    assert config.data.flip and not layer("prior", {"autoencoder": "vae", "flip": False}).data.flip
    assert layer("prior", {"autoencoder": "vae", "val_fraction": 0.5}).data.val_fraction == 0.5
    validated = layer("prior", {"autoencoder": "vae", "val_data": "demo"})
    assert (validated.data.val_source, validated.data.val_fraction) == ("demo", DataConfig.val_fraction)
    assert layer("prior", {"autoencoder": "vae", "data": "images"}).data.val_fraction == 0.3, "by another path the same"
    assert layer("prior", {"autoencoder": "vae", "data": "demo"}).data.val_fraction == DataConfig.val_fraction
    assert layer("prior", {"autoencoder": "vae", "recipe": "quick"}).optimization.batch_size == 8


def test_mirror_images_double_the_set(own):
    reports = list(train(prior_config(own / "flipped", epochs=1, flip=True)))
    epoch = next(report for report in reports if isinstance(report, EpochReport))
    assert int(epoch.row["step"]) == 2 * (len(NAMES) - len(VAL)) // 3


def test_mirror_images_are_encoded_and_latents_never_mirrored(own):
    ok("train", "vae", *TRAIN, "--image-size", "64", "--epochs", "1", "--out", "larger", "--quiet")
    config = prior_config(own / "flipped", autoencoder="larger", image_size=64, epochs=2, batch_size=4, lr=1e-9,
                          flip=True, precision="fp32")  # fmt: skip
    seen = []
    predict = registry.load("prior").predict

    def noting(self, examples, *noise):
        if self.training and noise:
            seen.extend(examples.clone())
        return predict(self, examples, *noise)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.load("prior"), "predict", noting)
        list(train(config))
    flow, _ = load_model(own / "flipped/model.safetensors")
    images = [image for image in list_images("images") if image.key not in VAL]
    pixels = np.stack([decode_fitted(image, 64, "squash").pixels for image in images]).transpose(0, 3, 1, 2)
    loaded = load_autoencoder("larger", own / "runs")
    both = [loaded.latents(loaded.batch(np.ascontiguousarray(each)))[0] for each in (pixels, pixels[..., ::-1])]
    expected = flow.whiten(torch.from_numpy(np.concatenate(both))).flatten(1)
    taken = torch.stack(seen).flatten(1)
    assert taken.shape == (2 * len(expected), expected.shape[1]) and expected.shape[1] == 16
    distances = torch.cdist(taken.double(), expected.double())
    assert float(distances.min(dim=1).values.max()) < 1e-4
    assert sorted(distances.argmin(dim=1).tolist()) == sorted(2 * list(range(len(expected))))


PETS = [f"{kind}/{number}" for kind in ("cat", "dog") for number in range(6)]
LABELLED = [*TRAIN_PRIOR, "--data", "pets", "--labels", "folders"]


def test_classes_are_the_folders_of_the_images(own):
    write_images(own / "pets", PETS)
    seen = []
    predict = registry.load("prior").predict

    def noting(self, examples, *noise):
        seen.append((self.training and bool(noise), examples.clone()))
        return predict(self, examples, *noise)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry.load("prior"), "predict", noting)
        ok(*LABELLED, "--epochs", "1", "--val-fraction", "0.3", "--precision", "fp32")
    config = config_of(own / "runs/prior")
    assert config["options"]["labels"] == "folders" and config["model"]["options"]["classes"] == ["cat", "dog"]
    assert read_document(own / "runs/prior/model.safetensors")["options"]["classes"] == ["cat", "dog"]
    flow, _ = load_model(own / "runs/prior/model.safetensors")
    images = list_images("pets")
    pixels = np.stack([decode_fitted(image, SIZE, "squash").pixels for image in images]).transpose(0, 3, 1, 2)
    loaded = load_autoencoder("vae", own / "runs")
    both = [loaded.latents(loaded.batch(np.ascontiguousarray(each)))[0] for each in (pixels, pixels[..., ::-1])]
    known = flow.whiten(torch.from_numpy(np.concatenate(both)).reshape(-1, 64, 1, 1)).flatten(1)
    numbers = torch.tensor([image.name.startswith("dog/") for image in images] * 2).float()
    for in_training, count in ((True, 2 * config["split"]["train"]), (False, config["split"]["val"])):
        taken = torch.cat([each for kind, each in seen if kind == in_training]).flatten(1)
        assert len(taken) == count
        nearest = torch.cdist(taken[:, :4].double(), known.double()).argmin(dim=1)
        assert torch.equal(taken[:, 4], numbers[nearest])


def test_labels_of_other_validation_images_go_by_the_names_of_their_folders(own):
    write_images(own / "pets", PETS)
    write_images(own / "held", ["dog/a", "fox/b"])
    config = prior_config(own / "x", data="pets", val_fraction=DataConfig.val_fraction, val_data="held",
                          labels="folders")  # fmt: skip
    (train_set, val, _), _ = finish(gather_images(config, list_sources(config), lambda: False))
    assert train_set.labels.tolist() == [0] * 6 + [1] * 6 and val.labels.tolist() == [1, 2]


def test_a_prior_with_classes_resumes_and_samples_of_them(own):
    write_images(own / "pets", PETS)
    labelled = [*LABELLED, "--schedule", "constant"]
    ok(*labelled, "--out", "whole")
    ok(*labelled, "--epochs", "1", "--out", "runs/prior")
    ok(*labelled, "--out", "runs/prior")
    assert_same_run(own / "whole", own / "runs/prior")
    flow, _ = load_model(own / "runs/prior/model.safetensors")
    with torch.no_grad():  # so short a training tells classes hardly apart
        for weights in (flow.class_embed.weight, flow.final_modulation.weight, flow.proj_out.weight):
            weights.normal_()
    save(own / "runs/prior/model.safetensors", flow.state_dict(), read_document(own / "runs/prior/model.safetensors"))
    drawn = {}
    for name, more in {
        "none": [], "cat": ["--class", "cat"], "dog": ["--class", "dog"], "both": ["--class", "cat", "--class", "dog"],
        "strong": ["--class", "cat", "--guidance", "9"], "flow": ["--prior", "flow", "--class", "cat"],
    }.items():  # fmt: skip
        ok("sample", "--model", "vae", "--n", "2", "--prior", "flow", "--steps", "4", *more, "--out", name, "--quiet")
        drawn[name] = [png(own / name / f"00000{index}.png") for index in range(2)]
    assert np.array_equal(drawn["both"][0], drawn["cat"][0]) and np.array_equal(drawn["both"][1], drawn["dog"][1])
    assert np.array_equal(drawn["flow"], drawn["cat"])
    assert len({np.array(drawn[name]).tobytes() for name in ("none", "cat", "dog", "strong")}) == 4
    message = fails(2, "sample", "--model", "vae", "--class", "cot")
    assert "--class cot" in message and "cat" in message and "dog" not in message
    shutil.rmtree(own / "runs/prior")
    ok(*TRAIN_PRIOR, "--epochs", "1")
    assert "learned no classes" in fails(2, "sample", "--model", "vae", "--class", "cat")


@pytest.mark.parametrize(
    "status, args, words",
    [
        (1, [*TRAIN_PRIOR, "--labels", "folders"], ["--labels folders", "in no folder"]),
        (1, [*TRAIN_PRIOR, "--data", "images/sub", "--labels", "folders"], ["--labels folders", "one folder"]),
        (2, ["train", "vae", "--labels", "folders"], ["--labels folders", "a prior"]),
        (2, [*TRAIN_PRIOR, "-o", "classes=a,b"], ["classes", "--labels folders"]),
        (2, ["sample", "--model", "vae", "--class", "cat"], ["--class cat", "--labels folders"]),
        (2, ["sample", "--model", "vae", "--prior", "gaussian", "--guidance", "2"], ["--guidance 2", "--class"]),
        (2, ["sample", "--model", "vae", "--prior", "mixture", "--class", "cat"], ["--class cat", "mixture"]),
    ],
)
def test_wrong_use_of_classes_is_an_error(own, status, args, words):
    message = fails(status, *args)
    assert all(word in message for word in words), message


@pytest.mark.soak
def test_the_loss_falls(own):
    ok(*TRAIN_PRIOR, "--epochs", "200", "--lr", "0.003")
    table = rows(own / "runs/prior")
    first, last = (np.mean([float(row["train_loss"]) for row in part]) for part in (table[:10], table[-50:]))
    assert last < 0.9 * first


@pytest.mark.parametrize(
    "status, args, words",
    [
        (2, ["train", "prior"], ["--model", "aecli train prior --model vae"]),
        (2, ["train", "vae", "--model", "ae"], ["--model ae", "is no prior"]),
        (1, ["train", "prior", "--model", "nothing"], ["nothing"]),
        (2, [*TRAIN_PRIOR, "--image-size", "64"], ["--image-size 64", "32"]),
        (2, [*TRAIN_PRIOR, "--fit", "crop"], ["--fit crop"]),
        (2, [*TRAIN_PRIOR, "--option", "latent_channels=5"], ["latent_channels", "64"]),
        (2, [*TRAIN_PRIOR, "--beta", "1"], ["--beta"]),
        (2, ["train", "prior", "--model", "vae", "--option", "channels=65"], ["channels", "64"]),
    ],
)
def test_wrong_use_is_an_error(own, status, args, words):
    message = fails(status, *args)
    assert all(word in message for word in words), message


def test_a_stream_is_refused(own):
    write_tars(own, [3, 3])
    with pytest.raises((DataError, ConfigError), match="stream"):
        list(train(prior_config(own / "x", data=str(own / "0.tar"), steps=2)))


def test_a_run_of_before_there_were_patches_is_repeated_and_resumed_from_its_folder(own):
    old = ["--schedule", "constant", "--no-flip", "-o", "whitening=common", "-o", "patch=1", "-o", "base=none"]
    ok(*TRAIN_PRIOR, *old)
    ok(*TRAIN_PRIOR, *old, "--epochs", "2", "--out", "old")
    config = config_of(own / "old")
    for options in (config["options"]["options"], config["model"]["options"]):
        del options["patch"], options["whitening"], options["base"], options["classes"]
    del config["options"]["labels"]
    (own / "old/config.json").write_text(json.dumps(config))
    ok("train", "prior", "--config", "old", "--epochs", "3", "--out", "old", "--quiet")
    assert_same_run(own / "runs/prior", own / "old")


def test_other_weights_begin_another_run(own):
    ok(*TRAIN_PRIOR)
    document = read_document(own / "runs/vae/model.safetensors")
    model, _ = load_model(own / "runs/vae/model.safetensors")
    tensors = {key: value + (0.01 if value.is_floating_point() else 0) for key, value in model.state_dict().items()}
    save(own / "runs/vae/model.safetensors", tensors, document)
    assert "--prior flow: none was trained" in fails(1, "sample", "--model", "vae", "--prior", "flow")
    result = invoke(*TRAIN_PRIOR[:-1])
    assert result.exit_code == 0 and "--model" in result.stderr and "runs/prior-2" in result.stderr
    assert "--model" in fails(1, *TRAIN_PRIOR, "--out", "runs/prior")


def test_grid_and_models_know_what_a_prior_is(own):
    ok(*TRAIN_PRIOR)
    assert ok_json("grid", "--n", "2")["rows"] == ["Ground Truth", "AE", "VAE"]
    listed = ok_json("models")
    found = next(model for model in listed["models"] if model["name"] == "prior")
    assert found["latent_shape"] == [64, 8, 8] and found["gflop"] > 0.5
    assert any(run["model"] == "prior" and run["val_psnr"] is None for run in listed["runs"])
    for command in ("reconstruct", "sample"):
        message = fails(1, command, "--model", "runs/prior")
        assert "a prior" in message and "aecli sample --model" in message
    dry = ok_json("train", "prior", "--model", "vae", "--epochs", "7", "--dry-run")
    assert dry["train_images"] == 2 * (len(NAMES) - len(VAL)) and dry["latent_shape"] == [64, 1, 1]
