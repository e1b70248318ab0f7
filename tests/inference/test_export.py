"""`export --format diffusers`, read back by diffusers, and the model card of every format."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

import aecli
from aecli.inference.export.model_card import card_text
from aecli.inference.export.subject import Subject
from aecli.inference.export.to_diffusers import diffusers_config
from aecli.inference.loaded_model import load_model
from aecli.models.latent_scaling import LatentScaling
from aecli.runs.checkpoints import read_document, save
from tests.support.trained import NARROW, fails, ok, ok_json, write_images, write_model

OPTIONS = {
    "kl": NARROW,
    "kl without 1x1": NARROW | {"use_quant_conv": False, "use_post_quant_conv": False, "layers_per_block": 2},
    "vq": NARROW | {"codebook_size": 32},
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    write_images(tmp_path / "images", height=32, width=32)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(name="kl", *more, data=("--data", "images"), out="out"):
    return ["export", "--model", f"{name}.safetensors", *data, "--out", out, "--format", "diffusers", *more]


def pictures(place):
    """All of them, float32 (N, 3, 32, 32) in [-1, 1]."""
    read = [np.array(Image.open(path)) for path in sorted((place / "images").rglob("*.png"))]
    return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.parametrize("case", OPTIONS)
@torch.no_grad()
def test_diffusers_loads_it_bit_for_bit(place, case):
    name = case.split()[0]
    model = write_model(place / f"{name}.safetensors", name, **OPTIONS[case])
    printed = ok_json(*export(name))
    theirs = (AutoencoderKL if name == "kl" else VQModel).from_pretrained(place / "out").eval()
    assert theirs.dtype == torch.float32 and theirs.config.sample_size == 32
    ours, loaded = model.state_dict(), theirs.state_dict()
    assert ours.keys() == loaded.keys() and all(torch.equal(ours[key], loaded[key]) for key in ours)
    images = pictures(place)
    whole = theirs(images).sample.clamp(-1, 1)
    torch.testing.assert_close(model(images), whole, rtol=1e-5, atol=1e-5)
    encoded = theirs.encode(images)
    if name == "kl":
        mean, variance = encoded.latent_dist.mean.double(), encoded.latent_dist.var.double()
    else:
        mean, variance = theirs.quantize(encoded.latents)[0].double(), torch.zeros(())
    centre = mean.mean()
    deviation = ((mean - centre).square() + variance).mean().sqrt()
    assert theirs.config.scaling_factor == pytest.approx(float(1 / deviation), rel=1e-4)
    assert printed["scaling"]["factor"] == theirs.config.scaling_factor
    shift = theirs.config.get("shift_factor") or 0.0
    assert shift == (pytest.approx(float(centre), rel=1e-3) if shift else 0.0)
    assert bool(shift) == (name == "kl" and abs(float(centre)) > 0.1 * float(deviation))


@torch.no_grad()
def test_force_upcast_where_float16_overflows(place):
    model = write_model(place / "kl.safetensors", "kl", **NARROW)
    ok(*export())
    assert AutoencoderKL.from_pretrained(place / "out").config.force_upcast is False
    model.encoder.conv_out.weight *= 2e4  # what float16 still holds
    model.encoder.conv_out.bias += 6e4
    document = json.loads((place / "out/config.json").read_text())
    shutil.rmtree(place / "out")
    model.quant_conv.weight.fill_(2.0)
    save(place / "kl.safetensors", model.state_dict(), read_document(place / "kl.safetensors"))
    ok(*export())
    assert document | {"force_upcast": True} == json.loads((place / "out/config.json").read_text()) | {
        key: document[key] for key in ("scaling_factor", "shift_factor")
    }
    half = AutoencoderKL.from_pretrained(place / "out", torch_dtype=torch.float16)
    assert not half.encode(pictures(place).half()).latent_dist.mean.isfinite().all()


@pytest.mark.parametrize("upcast", [False, True])
def test_without_images_force_upcast_stays_that_of_a_diffusers_folder(place, upcast):
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    AutoencoderKL(**NARROW, **blocks, sample_size=32, force_upcast=upcast).save_pretrained(place / "theirs")
    aecli.export_model("theirs", "out", "diffusers")
    assert AutoencoderKL.from_pretrained(place / "out").config.force_upcast is upcast
    assert f"`force_upcast` is {str(upcast).lower()}, " in (place / "out/README.md").read_text()


def test_without_images_the_scaling_is_left_open(place):
    write_model(place / "kl.safetensors", "kl", **NARROW)
    assert "--data" in ok(*export(data=())).stderr
    config = json.loads((place / "out/config.json").read_text())
    assert (config["scaling_factor"], config["shift_factor"], config["force_upcast"]) == (1.0, None, True)
    assert "was not measured" in (place / "out/README.md").read_text()


def test_a_scaling_that_the_model_came_with_is_kept(place):
    write_model(place / "kl.safetensors", "kl", **NARROW, latent_channels=2)
    loaded = load_model("kl.safetensors", Path("runs"))
    found = diffusers_config(Subject(loaded, LatentScaling((0.5, 0.25), (1.0, 2.0)), None))
    assert (found["latents_mean"], found["latents_std"], found["scaling_factor"]) == ([1.0, 2.0], [2.0, 4.0], 1.0)
    found = diffusers_config(Subject(loaded, LatentScaling((0.36,), (0.12,)), None))
    assert (found["scaling_factor"], found["shift_factor"]) == (0.36, 0.12)


def test_the_same_images_give_the_same_bytes_and_nothing_else_is_touched(place):
    write_model(place / "kl.safetensors", "kl", **NARROW)
    ok(*export())
    (place / "out/notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in (place / "out").iterdir()}
    assert "--overwrite" in fails(1, *export())
    ok(*export("kl", "--overwrite"))
    assert before == {path.name: path.read_bytes() for path in (place / "out").iterdir()}
    weights = place / "out/diffusion_pytorch_model.safetensors"
    assert load_file(weights).keys() == load_file(place / "kl.safetensors").keys()


@pytest.mark.parametrize("model", ["ae", "vae"])
def test_another_network_is_refused_by_name_with_a_format_that_has_it(trained, model):
    message = fails(1, "export", "--model", model, "--out", "out", "--format", "diffusers")
    assert f"'{model}'" in message and "hint: --format onnx" in message
    assert not (trained / "out").exists()


def test_a_run_is_never_written_over(trained):
    for out in ("runs/vae", "runs"):
        before = {path: path.read_bytes() for path in (trained / "runs").resolve().rglob("*") if path.is_file()}
        args = ["export", "--model", "runs/kl.safetensors", "--out", out, "--format", "diffusers"]
        fails(1, *args)
        if out == "runs/vae":
            assert "folder of a run" in fails(1, *args, "--overwrite")
        assert {path: path.read_bytes() for path in (trained / "runs").resolve().rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("args", "package"), [(["--format", "onnx"], "onnxscript"),
                                               (["--format", "torch", "--push", "hf:me/it"], "huggingface_hub")],
                         ids=["onnx", "hub"])  # fmt: skip
def test_a_missing_package_is_told_with_the_extra_that_has_it(trained, monkeypatch, args, package):
    monkeypatch.setitem(sys.modules, package, None)
    extra = "onnx" if "onnx" in args else "hub"
    assert f'pip install "aecli[{extra}]"' in fails(2, "export", "--model", "vae", "--out", "out", *args)
    assert not (trained / "out").exists()


# The card


def test_the_card_says_data_recipe_and_numbers_but_no_private_path(trained):
    loaded = load_model("vae", Path("runs"))
    text = card_text(Subject(loaded, LatentScaling((2.0,)), None), "onnx", None, "any sides")
    config = json.loads(Path("runs/vae/config.json").read_text())
    assert f"`images`, {config['split']['train']} images" in text
    for row in (
        "| `--epochs` | 2 |",
        "| `--batch-size` | 3 |",
        "| `--lr` | 0.0001 |",
        "| `-o width` | 4 |",
        "| `--optimizer` | adam |",
    ):
        assert row in text
    assert "No licence is stated" in text and "license" not in ModelCard(text).data.to_dict()
    assert str(trained) not in text and str((trained / "runs").resolve().parent) not in text
    with open("runs/vae/metrics.csv") as file:
        names, *rows = (line.strip().split(",") for line in file)
    best = int(text.split("after epoch ")[1].split(",")[0])
    row = dict(zip(names, rows[best - 1], strict=True))
    for name, title in (("val_psnr", "PSNR (dB)"), ("val_ssim", "SSIM"), ("val_lpips", "LPIPS (alex)")):
        assert f"| {title} | {float(row[name]):.4g} |" in text


def test_the_card_has_front_matter_and_lines_that_load_the_model(place):
    model = write_model(place / "kl.safetensors", "kl", **NARROW)
    ok(*export("kl", "--license", "apache-2.0"))
    card = ModelCard.load(place / "out/README.md")
    assert (card.data.license, card.data.library_name) == ("apache-2.0", "diffusers")
    assert {"aecli", "autoencoder", "diffusers"} <= set(card.data.tags)
    lines = card.text.split("```python\n")[1].split("```")[0].replace('"."', '"out"')
    names = {"images": pictures(place)}
    with torch.no_grad():
        exec(lines, names)
        torch.testing.assert_close(names["pictures"].clamp(-1, 1), model(names["images"]), rtol=1e-5, atol=1e-5)
