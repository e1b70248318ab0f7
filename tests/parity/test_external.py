"""MODEL takes the weights of others: what aecli computes from a folder of diffusers' is what diffusers computes."""

import numpy as np
import pytest
import torch
from PIL import Image

import aecli
from aecli.configs import DecodeConfig, EncodeConfig
from aecli.errors import DataError
from aecli.inference.latents.decode import decode
from aecli.inference.latents.encode import encode
from aecli.inference.loaded_model import load_model
from aecli.models import registry
from tests.support.diffusers_models import MODELS, save


def latents_of(model, images):
    """diffusers' latents, and log variances where it has any."""
    encoded = model.encode(images)
    if hasattr(encoded, "latent_dist"):
        return encoded.latent_dist.mean, encoded.latent_dist.logvar
    latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent
    return (model.quantize(latents)[0] if hasattr(model, "quantize") else latents), None


def scaled(model, latents):
    """What diffusers' pipelines hand to the diffusion model."""
    config = model.config
    if config.get("latents_mean"):
        mean, std = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in ("latents_mean", "latents_std"))
        return (latents - mean) * config.scaling_factor / std
    return (latents - (config.get("shift_factor") or 0)) * config.scaling_factor


def assert_equal(found, expected):
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_latents_and_reconstructions_are_diffusers(name, tmp_path):
    reference = save(name, tmp_path / "theirs")
    loaded = load_model(str(tmp_path / "theirs"), tmp_path / "runs", device="cpu")
    is_own = type(loaded.model) in {registry.load(each) for each in registry.names()}
    f = loaded.model.size_multiple
    assert is_own == MODELS[name][2] and f == next((side for side in (32, 64) if f"f{side}" in name), 8)
    images = torch.rand(2, 3, 2 * f, 3 * f, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected, expected_log_variance = latents_of(reference, images)
    latents, log_variance = loaded.latents(images)
    assert tuple(latents.shape[1:2]) == loaded.model.latent_shape(loaded.image_size)[:1]
    assert_equal(latents, expected)
    assert (log_variance is None) == (expected_log_variance is None)
    if log_variance is not None:
        assert_equal(log_variance, expected_log_variance)
    assert_equal(loaded.latent_scaling.apply(latents), scaled(reference, expected))
    codes = loaded.model.indices(torch.from_numpy(latents))
    if codes is not None:
        assert torch.equal(codes.flatten(), reference.quantize(expected)[2][2])
        assert loaded.model.codebook_size == 2**loaded.model.bits_per_latent == 32
    decoded = reference.decode(expected).sample.clamp(-1, 1)
    assert decoded.std() > 0.01
    assert_equal(loaded.decode(torch.from_numpy(latents), exact=True), decoded)
    assert_equal(loaded.forward(images, exact=True), decoded)


@pytest.mark.parametrize("name", ["latents by channel", "DC-AE f32"])
@torch.no_grad()
def test_arrays_of_encode_are_what_diffusers_hands_on(name, tmp_path):
    reference, model = save(name, tmp_path / "theirs"), str(tmp_path / "theirs")
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    encode(EncodeConfig(model, images, image_size=64, format="npy", out=tmp_path / "out", device="cpu"))
    expected, _ = latents_of(reference, torch.from_numpy(images).movedim(-1, 1) / 127.5 - 1)
    found = np.stack([np.load(file) for file in sorted((tmp_path / "out").glob("*.npy"))])
    assert_equal(found, scaled(reference, expected))
    np.save(tmp_path / "samples.npy", found)  # as of a diffusion model: nothing says how they are scaled
    for latents, out in (("out", "back"), ("samples.npy", "drawn")):
        decode(DecodeConfig(model, tmp_path / latents, out=tmp_path / out, device="cpu"))
        pictures = np.stack([np.asarray(Image.open(file)) for file in sorted((tmp_path / out).glob("*.png"))])
        decoded = reference.decode(expected).sample.clamp(-1, 1).add(1).mul(127.5).movedim(1, -1).numpy()
        assert np.abs(pictures - decoded).max() < 0.51


@torch.no_grad()
def test_samples_of_a_gaussian_fitted_to_given_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reference = save("SD", tmp_path / "theirs")
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)
    model = aecli.load("theirs", image_size=64, fit="squash", device="cpu")
    means = model.encode(images).double()
    assert_equal(means.float(), reference.encode(torch.from_numpy(images).movedim(-1, 1) / 127.5 - 1).latent_dist.mean)
    still = model.sample(1, temperature=0.0, prior="gaussian", data=images, output="tensor")
    decoded = reference.decode(means.mean(0, keepdim=True).float()).sample.clamp(-1, 1)
    torch.testing.assert_close(still, decoded, rtol=1e-4, atol=1e-4)
    drawn = model.sample(4, prior="gaussian", data=images, output="tensor")
    assert drawn.std(0).mean() > 1e-4
    with pytest.raises(DataError, match="--data"):
        model.sample(1)


@torch.no_grad()
def test_layers_of_the_tiny_one_see_pixels_from_0_to_1(tmp_path):
    reference = save("TAESD", tmp_path / "taesd")
    loaded = load_model(str(tmp_path / "taesd"), tmp_path / "runs", device="cpu")
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, 16, 24), dtype=np.uint8)
    latents = reference.encoder.layers(torch.from_numpy(pixels) / 255)
    assert_equal(loaded.latents(loaded.batch(pixels))[0], latents)
    expected = (255 * reference.decoder.layers(torch.tanh(latents / 3) * 3)).clamp(0, 255).round()
    found = torch.from_numpy(loaded.reconstruct(pixels)).float()
    assert (found - expected).abs().max() <= 1 and (found != expected).float().mean() < 0.01
