"""Folders of diffusers as a MODEL: what is found in them, what is refused, and what the command line makes of them."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import aecli
from aecli.errors import CheckpointError, ModelError
from aecli.inference.loaded_model import load_model
from aecli.models.diffusers_config import CLASSES, DiffusersConfig
from aecli.runs import checkpoints
from tests.support.diffusers_models import MODELS, build, save
from tests.support.trained import fails, ok, png, write_images

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(model="m"):
    told = []
    loaded = load_model(str(model), checkpoints.Path("runs"), device="cpu", listen=told.append)
    return loaded, "\n".join(notice.text for notice in told)


def assert_weights(loaded, reference):
    found = loaded.model.state_dict()
    assert found.keys() == reference.state_dict().keys()
    assert all(torch.equal(value, found[key]) for key, value in reference.state_dict().items())


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_weights(folder, change):
    path = folder / f"{WEIGHTS}.safetensors"
    save_file(change(load_file(path)), path)


@pytest.mark.parametrize("name", ["SD", "TAESD"])
def test_weights_in_several_files(name, place):
    reference = save(name, "m", max_shard_size="20KB")
    assert len(list((place / "m").glob(f"{WEIGHTS}-*.safetensors"))) > 2
    loaded, _ = load()
    assert_weights(loaded, reference)
    (shard, *_) = sorted((place / "m").glob(f"{WEIGHTS}-*.safetensors"))
    before = loaded.sha256
    tensors = load_file(shard)
    save_file({key: value + 1 for key, value in tensors.items()}, shard)
    assert load()[0].sha256 != before
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name}: no such file"):
        load()


@pytest.mark.parametrize("names", [{}, [], {"a": "../b.safetensors"}, {"a": "b.bin"}, {"a": 1}])
def test_an_index_names_files_beside_it(names, place):
    save("SD", "m", max_shard_size="20KB")
    (place / f"m/{WEIGHTS}.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match="index.json is damaged"):
        load()


def test_a_variant_is_taken_where_there_is_no_other(place):
    half = build("SD").half()
    half.save_pretrained("m", variant="fp16")
    loaded, _ = load()
    assert loaded.located.checkpoint.name == f"{WEIGHTS}.fp16.safetensors"
    assert_weights(loaded, half.float())
    reference = save("SD", "m")
    assert_weights(load()[0], reference)


def test_names_of_older_diffusers(place):
    reference = save("SD", "m")
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def older(key):
        for now, then in renamed.items():
            key = key.replace(now, then)
        return key

    change_weights(place / "m", lambda weights: {older(key): value for key, value in weights.items()})
    assert_weights(load()[0], reference)


def test_a_pipeline_and_a_file_in_a_folder_name_its_autoencoder(place):
    reference = save("SDXL", "pipe/vae")
    (place / "pipe/model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    labels = {"pipe": "pipe", "pipe/vae": "pipe-vae", f"pipe/vae/{WEIGHTS}.safetensors": WEIGHTS}
    for named, label in labels.items():
        loaded, told = load(named)
        assert_weights(loaded, reference)
        assert loaded.located.label == label and loaded.latent_scaling.factor == (0.13025,)
        assert "assuming --image-size 64" in told
    save("VQ-f8", "ldm/vqvae")
    assert load("ldm")[0].name == "vq"


def test_without_a_config_names_and_shapes_say_what_it_is(place):
    reference = save("SD", "m")
    change_config(place / "m", norm_num_groups=8)
    (place / "m/config.json").unlink()
    loaded, _ = load()
    assert_weights(loaded, reference)
    assert loaded.image_size == 256 and loaded.latent_scaling.is_identity


def test_a_pickle_is_refused_with_the_lines_that_convert_it(place):
    reference = save("SD", "m", safe_serialization=False)
    with pytest.raises(CheckpointError, match=f"m/{WEIGHTS}.bin is a pickle") as caught:
        load()
    with pytest.raises(CheckpointError, match="is a pickle"):
        load(f"m/{WEIGHTS}.bin")
    exec("\n".join(str(caught.value).splitlines()[2:]), {})
    assert_weights(load()[0], reference)


@pytest.mark.parametrize("name", ["SD", "TAESD"])
def test_weights_that_do_not_fit_are_listed(name, place):
    save(name, "m")
    first = next(iter(load_file(f"m/{WEIGHTS}.safetensors")))

    def change(weights):
        weights.pop(first)
        return weights | {"extra.weight": torch.zeros(1)}

    change_weights(place / "m", change)
    with pytest.raises(CheckpointError, match="in 2 weights") as caught:
        load()
    assert f"{first}: missing" in str(caught.value) and "extra.weight: left over" in str(caught.value)
    (place / f"m/{WEIGHTS}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"m has no {WEIGHTS}.safetensors"):
        load()


@pytest.mark.parametrize(
    ("values", "error", "said"),
    [
        ({"_class_name": "UNet2DModel"}, CheckpointError, "UNet2DModel is not one of AutoencoderKL"),
        ({"in_channels": 4}, CheckpointError, "in_channels 4"),
        ({"magic": 3}, ModelError, "no AutoencoderKL with magic"),
        ({"scaling_factor": 0}, CheckpointError, "invalid factor"),
        ({"scaling_factor": "big"}, CheckpointError, "invalid scaling_factor"),
        ({"shift_factor": 1.0, "latents_mean": [0.0] * 4}, CheckpointError, "shift_factor and latents_mean"),
        ({"layers_per_block": "two"}, CheckpointError, "can't be built"),
        ({"down_block_types": ["NoBlock"] * 4}, CheckpointError, "can't be built"),
        ({"block_out_channels": [6, 6, 6, 6]}, CheckpointError, "can't be built"),
    ],
)
def test_configs_that_can_not_be_computed_are_refused_by_key(values, error, said, place):
    save("SD", "m")
    change_config(place / "m", **values)
    with pytest.raises(error, match=said):
        load()


def test_defaults_of_configs_are_those_of_the_classes(place):
    """Without a key, what diffusers takes."""
    for name in ("AutoencoderKL", "VQModel"):
        kind = next(kind for kind, *_ in MODELS.values() if kind.__name__ == name)
        reference = kind()
        config = DiffusersConfig.from_document({"_class_name": name})
        whole = DiffusersConfig.from_document(json.loads(reference.to_json_string()))
        assert config.own_model() is not None and config.own_model() == whole.own_model()
        assert config.latent_scaling() == whole.latent_scaling()
    for name in CLASSES:
        kind = next(kind for kind, *_ in MODELS.values() if kind.__name__ == name)
        with torch.device("meta"):
            whole = DiffusersConfig.from_document(json.loads(kind().to_json_string()))
        assert DiffusersConfig.from_document({"_class_name": name}).downsampling == whole.downsampling


def test_without_diffusers_own_networks_work_and_others_name_the_extra(place, monkeypatch):
    save("SD", "own")
    save("TAESD", "theirs")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    load("own")
    with pytest.raises(ModelError, match=r"pip install 'aecli\[diffusers\]'"):
        load("theirs")


@pytest.mark.parametrize("name", ["SD3", "TAESD"])
def test_the_commands_take_it(name, place):
    reference = save(name, "m")
    write_images(place / "images", ["a", "b"])
    args = ["--model", "m", "--data", "images", "--image-size", "32", "--fit", "squash"]
    told = ok("reconstruct", *args, "--out", "out", "--latents", "l.safetensors").stderr
    assert ("(z - 0.0609) x 1.5305" in told) == (name == "SD3")
    with safe_open("l.safetensors", "pt") as file:
        latents, document = file.get_tensor("mean"), json.loads(file.metadata()["aecli"])
    model = aecli.load("m", image_size=32, fit="squash")
    assert document["latent_scaling"] == model.latent_scaling.to_json()
    own = (latents / reference.config.scaling_factor) + (reference.config.get("shift_factor") or 0)
    with torch.no_grad():
        decoded = reference.decode(own).sample.clamp(-1, 1)
    expected = (127.5 * (decoded + 1)).round().permute(0, 2, 3, 1).numpy()
    for row, found in zip(expected, (png(place / "out/a.png"), png(place / "out/b.png")), strict=True):
        assert np.abs(row - found).max() <= 1 and (row != found).mean() < 0.01
    torch.testing.assert_close(model.decode(own, output="tensor"), decoded, rtol=1e-5, atol=1e-5)
    ok("reconstruct", "--model", "m", "--data", "images/a.png", "--native", "--out", "native")
    assert png(place / "native/a.png").shape == (40, 48, 3)
    assert "is in no run folder" in fails(1, "sample", "--model", "m", "--prior", "gaussian", "--n", "1")
    assert "unknown model" in fails(1, "train", "AutoencoderTiny", "--data", "images")


@pytest.mark.slow
def test_a_flow_is_trained_on_its_latents_and_sampled_at_that_size(place):
    save("SD", "m")  # whose sample_size is another
    write_images(place / "images", ["a", "b", "c", "d"])
    ok("train", "prior", "--model", "m", "--data", "images", "--image-size", "16", "--width", "32", "-o", "depth=1",
       "--epochs", "1", "--batch-size", "2", "--device", "cpu")  # fmt: skip
    ok("sample", "--model", "m", "--prior", "flow", "--steps", "2", "--n", "2", "--out", "drawn")
    assert png(place / "drawn/000000.png").shape == (16, 16, 3)
