"""`--init`: a run that begins from trained weights, and needs them only then."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from aecli.errors import CheckpointError, ConfigError
from aecli.inference.loaded_model import load_model
from aecli.models.latent_scaling import LatentScaling
from aecli.progress import Notice
from aecli.runs.checkpoints import fingerprint
from tests.support.stopping import train_until
from tests.support.trained import TRAIN, assert_same_run, fails, ok, ok_json, rows

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def config(config):
    return config.replace(epochs=1)


@pytest.fixture
def weights(config, tmp_path):
    """A run of another seed, whose best weights are those of its only epoch."""
    run(config.replace(seed=5, out=tmp_path / "old", options={"width": 4, "beta": 0.5}))
    return tmp_path / "old"


def run(config, stop_after=None):
    reports = train_until(config, stop_after)
    return [report.text for report in reports if isinstance(report, Notice)], reports[-1]


def init_of(folder):
    return json.loads((folder / "config.json").read_text())["options"]["init"]


def test_it_begins_from_those_weights_and_their_options_and_says_so(config, weights, tmp_path):
    config = config.replace(init=str(weights), options={}, lr=1e-12, out=tmp_path / "new")
    notices, _ = run(config)
    (told,) = [text for text in notices if text.startswith("beginning from")]
    assert f"{weights}/model.safetensors: 74 tensors taken; with their width 4, latent_dim none, beta 0.5" in told
    before, after = (load_file(folder / "model.safetensors") for folder in (weights, tmp_path / "new"))
    for key, value in before.items():
        if "running" not in key and "num_batches" not in key:  # a step changes batch statistics at any rate
            assert torch.allclose(value, after[key], atol=1e-9), key
    path = weights / "model.safetensors"
    assert init_of(tmp_path / "new") == {"given": str(weights), "path": str(path), "sha256": fingerprint(path)}


def test_the_same_weights_and_seed_give_the_same_run_which_resumes_without_them(config, weights, tmp_path):
    config = config.replace(init=str(weights), epochs=2)
    run(config.replace(out=tmp_path / "whole"))
    _, end = run(config, stop_after=3)
    assert end.run.path == config.run.runs / "vae"
    kept = init_of(end.run.path)
    (weights / "model.safetensors").write_bytes((tmp_path / "whole/model.safetensors").read_bytes())
    notices, _ = run(config, stop_after=1)
    assert any("other weights by now" in text for text in notices)
    shutil.rmtree(weights)
    notices, end = run(config)
    assert end.run.path == config.run.runs / "vae" and notices == []
    assert_same_run(tmp_path / "whole", end.run.path)
    assert init_of(end.run.path) == kept
    with pytest.raises(CheckpointError, match="no such weights any more"):
        run(config.replace(lr=1e-4))
    assert [path.name for path in config.run.runs.iterdir()] == ["vae"]


def test_it_is_part_of_the_identity_of_a_run(config, weights, tmp_path):
    _, plain = run(config)
    _, begun = run(config.replace(init=str(weights)))
    assert [plain.run.path.name, begun.run.path.name] == ["vae", "vae-2"]
    with pytest.raises(CheckpointError, match="--init none"):
        run(config.replace(init=str(weights), out=plain.run.path))
    moved = weights.rename(tmp_path / "moved")  # known by its content
    _, again = run(config.replace(init=str(moved / "model.safetensors")))
    assert again.was_finished and again.run.path == begun.run.path


@pytest.mark.parametrize(
    ("options", "flag"), [({"width": 5}, "--width 5"), ({"latent_dim": 3, "beta": 1.0}, "--latent-dim 3")]
)
def test_weights_of_other_shapes_are_refused_by_the_option(config, weights, options, flag):
    with pytest.raises(CheckpointError, match=f"{flag}: .*model.safetensors, which --init names, have"):
        run(config.replace(init=str(weights), options={"width": 4, **options}))
    assert not config.run.runs.exists()


def test_weights_of_another_model_are_refused_and_a_prior_takes_none(config, weights):
    with pytest.raises(CheckpointError, match="--init .* holds a model vae, not ae"):
        run(config.replace(model="ae", init=str(weights)))
    with pytest.raises(ConfigError, match="--init .*: a prior"):
        run(config.replace(model="prior", autoencoder=str(weights), init=str(weights)))


def test_tensors_that_are_left_or_new_are_named(config, weights, tmp_path):
    """Of a plain state_dict, which others wrote."""
    tensors = load_file(weights / "model.safetensors")
    missing = tensors.pop("decoder.15.bias")
    save_file({**tensors, **{f"loss.{index}": torch.ones(2) for index in range(7)}}, tmp_path / "theirs.safetensors")
    notices, _ = run(config.replace(init=str(tmp_path / "theirs.safetensors")))
    assert missing.shape == (3,)
    assert any("73 tensors taken, 7 left (loss.0, loss.1, loss.2, loss.3, loss.4, …), 1 new (decoder.15.bias)" in text
               for text in notices)  # fmt: skip


def test_the_command_takes_model_options_and_image_size_from_the_weights(own):
    kept = ["--data", "images", "--val-fraction", "0.3", "--batch-size", "3", "--epochs", "1"]
    message = fails(1, "train", "vae", *TRAIN, "--out", "runs/vae", "--lr", "0.01")
    assert "--init runs/vae" in message and "--restart" in message
    assert "--init runs/vae" in ok("train", "vae", *TRAIN, "--lr", "0.01", "--epochs", "1").stderr
    result = ok_json("train", "vae", *kept, "--init", "runs/vae", "--lr", "0.01", "--out", "fine")
    config = json.loads((own / "fine/config.json").read_text())
    assert config["options"]["image_size"] == 32 and config["model"]["options"]["width"] == 4
    assert result["run"] == "fine" and len(rows(own / "fine")) == 1
    larger = ok_json("train", "vae", *kept, "--init", "fine", "--image-size", "64", "--dry-run")
    assert larger["options"]["image_size"] == 64 and larger["options"]["options"]["width"] == 4
    assert "--init gone.safetensors: not a model" in fails(1, "train", "vae", *kept, "--init", "gone.safetensors")
    again = ok_json("train", "vae", "--config", "fine", "--out", "again")
    assert again["run"] == "again" and rows(own / "again") == rows(own / "fine")


@pytest.mark.parametrize("name", ["SDXL", "VQ-f8"])
def test_a_diffusers_folder_gives_weights_and_options(name, config, tmp_path):
    from tests.support.diffusers_models import save

    reference = save(name, tmp_path / "theirs")
    model = "vq" if name.startswith("VQ") else "kl"
    config = config.replace(model=model, init=str(tmp_path / "theirs"), options={}, lr=1e-12)
    notices, end = run(config.replace(out=tmp_path / "new"))
    assert any(f"{len(reference.state_dict())} tensors taken" in text for text in notices)
    after = load_file(end.run.model)
    for key, value in reference.state_dict().items():
        assert torch.allclose(value, after[key], atol=1e-9), key
    options = json.loads((tmp_path / "new/config.json").read_text())["model"]["options"]
    assert options["block_out_channels"] == [8, 16, 16, 16] and options["norm_num_groups"] == 4
    with pytest.raises(CheckpointError, match="--option layers_per_block.* 1: .*--init names, have 2"):
        run(config.replace(options={"layers_per_block": 1}, out=tmp_path / "other"))
    with pytest.raises(CheckpointError, match=f"holds a model {model}, not vae"):
        run(config.replace(model="vae"))


def test_a_scaling_of_latents_stays_while_the_encoder_does(config, tmp_path):
    from tests.support.diffusers_models import save

    save("SD3", tmp_path / "theirs")
    config = config.replace(init=str(tmp_path / "theirs"), model="kl", options={}, epochs=2)
    decoder = config.replace(train="decoder", out=tmp_path / "decoder")
    run(decoder, stop_after=1)
    shutil.rmtree(tmp_path / "theirs")
    run(decoder)  # goes on without them
    assert load_model(str(tmp_path / "decoder"), tmp_path).latent_scaling == LatentScaling((1.5305,), (0.0609,))
    save("SD3", tmp_path / "theirs")
    run(config.replace(out=tmp_path / "all"))
    assert load_model(str(tmp_path / "all"), tmp_path).latent_scaling.is_identity


def test_networks_that_only_diffusers_has_are_not_trained(config, tmp_path):
    from tests.support.diffusers_models import save

    save("TAESD", tmp_path / "theirs")
    with pytest.raises(CheckpointError, match="holds a model AutoencoderTiny, not kl"):
        run(config.replace(model="kl", init=str(tmp_path / "theirs"), options={}))
