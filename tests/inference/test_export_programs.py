"""`export --format onnx|torch`: the programs against the model, at other sizes and counts than were traced."""

import json
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from aecli.inference.export import export as export_module
from aecli.models import codes
from aecli.runs.checkpoints import read_document, save
from tests.support.trained import NARROW, ok, write_images, write_model

SMALL = {"width": 8, "depth": 1}
VQ = {"bottleneck": "vq", "codebook_size": 32}
CASES = {
    "ae": ("ae", {"width": 4}),
    "vae": ("vae", {"width": 4}),
    "pca": ("pca", {}),
    "resnet": ("resnet", SMALL),
    "resnet kl": ("resnet", SMALL | {"bottleneck": "kl"}),
    "resnet fsq": ("resnet", SMALL | {"bottleneck": "fsq"}),
    "resnet vq": ("resnet", SMALL | VQ | {"downsampling": 4}),
    "resnet vq cosine": ("resnet", SMALL | VQ | {"distance": "cosine"}),
    "kl": ("kl", NARROW),
    "vq": ("vq", NARROW | {"block_out_channels": (8, 16), "codebook_size": 32}),
}
FURTHER = ("vae", "pca", "resnet", "resnet vq")  # whose parts are in the others: for campaigns
SHAPES = ((1, 2, 2), (3, 4, 5), (2, 7, 2))  # images, and positions of their latents
SIDE = 64


def export(place, case, *formats):
    """Write a model of that kind and export it; return it."""
    name, options = CASES[case]
    model = write_model(place / "m.safetensors", name, SIDE, **options)
    with torch.no_grad():  # residual branches begin with zeros: nothing would be compared
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d) and not layer.weight.any():
                nn.init.normal_(layer.weight, std=0.05)
    save(place / "m.safetensors", model.state_dict(), read_document(place / "m.safetensors"))
    for each in formats:
        result = ok("export", "--model", place / "m.safetensors", "--data", place / "images", "--format", each,
                    "--out", place / each)  # fmt: skip
        assert result.stderr == ""
    return model


def cases(model, shapes=SHAPES):
    """Yield images, latents and reconstructions of each shape."""
    generator, f = torch.Generator().manual_seed(1), model.size_multiple
    for count, height, width in shapes:
        images = torch.rand(count, 3, f * height, f * width, generator=generator) * 2 - 1
        with torch.no_grad():
            latents = model.encode_distribution(images)[0]
            yield images, latents, model.decode(latents)


def check_onnx(folder, model, shapes=SHAPES):
    onnxruntime = pytest.importorskip("onnxruntime")
    encoder, decoder = (onnxruntime.InferenceSession(folder / f"{part}.onnx") for part in ("encoder", "decoder"))
    assert encoder.get_inputs()[0].shape == ["count", 3, "height", "width"]
    assert decoder.get_outputs()[0].shape == ["count", 3, "height", "width"]
    facts = encoder.get_modelmeta().custom_metadata_map
    assert facts["images"].endswith("from -1 to 1") and float(facts["factor"]) > 0 and "shift" in facts
    for images, latents, made in cases(model, shapes):
        found = encoder.run(None, {"images": images.numpy()})[0]
        np.testing.assert_allclose(found, latents, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(decoder.run(None, {"latents": latents.numpy()})[0], made, rtol=1e-4, atol=1e-4)


def check_torch(folder, model):
    encoder, decoder = (torch.export.load(folder / f"{part}.pt2").module() for part in ("encoder", "decoder"))
    for images, latents, made in cases(model):
        torch.testing.assert_close(encoder(images), latents, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(decoder(latents), made, rtol=1e-5, atol=1e-6)


@pytest.fixture
def place(tmp_path, monkeypatch):
    write_images(tmp_path / "images", ["a", "b", "c"], SIDE, SIDE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_onnx_of_a_linear_map(place):
    pytest.importorskip("onnxscript")
    model = export(place, "pca", "onnx")
    check_onnx(place / "onnx", model, (*SHAPES, (2, 1, 1)))
    card = Path("onnx/README.md").read_text()
    lines = card.split("```python\n")[1].split("```")[0].replace('f"{part}', 'f"onnx/{part}')
    for images, _, made in cases(model):
        names = {"images": images.numpy()}
        exec(lines, names)
        np.testing.assert_allclose(names["pictures"], made, rtol=1e-4, atol=1e-4)
    assert re.search(r"factor [\d.]+, shift -?[\d.e-]+, measured on 3 images", card)


@pytest.fixture
def traced_once(monkeypatch):
    """Tracing a model, which takes long, gives each format the same programs."""
    trace, traced = export_module.trace, []

    def once(loaded, listen):
        if not traced:
            traced.append(trace(loaded, listen))
        return traced[0]

    monkeypatch.setattr(export_module, "trace", once)


@pytest.mark.slow
@pytest.mark.usefixtures("traced_once")
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.soak) if case in FURTHER else case for case in CASES]
)
def test_programs_equal_the_model(place, case, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(codes, "_MOST_DISTANCES", 256)  # so that a quantiser cuts what it computes into parts
    model = export(place, case, "torch", "onnx")
    check_onnx(place / "onnx", model)
    check_torch(place / "torch", model)
    with zipfile.ZipFile(place / "torch/encoder.pt2") as file:
        name = next(name for name in file.namelist() if name.endswith("aecli.json"))
        assert json.loads(file.read(name))["model"] == CASES[case][0]


@pytest.mark.slow
def test_a_model_with_one_position_is_exported_for_that_size(place):
    pytest.importorskip("onnxscript")
    model = write_model(place / "m.safetensors", "ae", 32, width=4)
    ok("export", "--model", "m.safetensors", "--data", "images", "--format", "torch", "--out", "out")
    encoder = torch.export.load(place / "out/encoder.pt2").module()
    for images, latents, _ in cases(model, ((1, 1, 1), (3, 1, 1))):
        torch.testing.assert_close(encoder(images), latents, rtol=1e-5, atol=1e-6)
    assert "32×32 pixels" in Path("out/README.md").read_text()
