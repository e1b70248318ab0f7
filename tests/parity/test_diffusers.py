"""The autoencoders of latent diffusion against diffusers' own modules, from the same weights, both ways."""

import dataclasses
import inspect

import pytest
import torch

from aecli.models import registry

NARROW = {"block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4}
WITHOUT = {"use_quant_conv": False, "use_post_quant_conv": False}
SHAPES = {
    "SD and SDXL": ("kl", {"layers_per_block": 2, "latent_channels": 4}),
    "SD3 and FLUX": ("kl", {"layers_per_block": 2, "latent_channels": 16, **WITHOUT}),
    "shallow": ("kl", {"block_out_channels": (8, 16), "mid_block_add_attention": False}),
    "one resolution": ("kl", {"block_out_channels": (8,), "use_post_quant_conv": False}),
    "VQ": ("vq", {"codebook_size": 32, "latent_channels": 3}),
    "VQ without attention": ("vq", {"codebook_size": 20, "vq_embed_dim": 6, "mid_block_add_attention": False}),
}
OTHER_NAMES = {"codebook_size": "num_vq_embeddings"}


def ours(shape):
    name, options = SHAPES[shape]
    torch.manual_seed(0)
    return scattered(registry.build(name, registry.resolve_options(name, NARROW | options)).eval())


def theirs(model):
    """diffusers' module of the same config, with weights of its own."""
    from diffusers import AutoencoderKL, VQModel  # ten seconds, which collecting the tests need not take

    given = {OTHER_NAMES.get(key, key): value for key, value in dataclasses.asdict(model.options).items()}
    kind = VQModel if hasattr(model, "quantize") else AutoencoderKL
    known = inspect.signature(kind.__init__).parameters
    blocks = len(model.options.block_out_channels)
    torch.manual_seed(1)
    return scattered(kind(
        **{key: value for key, value in given.items() if key in known},
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks,
    ).eval())  # fmt: skip


@torch.no_grad()
def scattered(module):
    """The module with norms that do something, and codes that differ."""
    for name, value in module.named_parameters():
        if "norm" in name or "embedding" in name:
            value.add_(torch.randn(value.shape) / 4)
    return module


def pictures(f):
    generator = torch.Generator().manual_seed(2)
    return [torch.rand(2, 3, f * h, f * w, generator=generator) * 2 - 1 for h, w in ((1, 1), (3, 2), (2, 5))]


def assert_equal(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("direction", ["ours in theirs", "theirs in ours"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_from_the_same_weights_they_compute_the_same(shape, direction):
    model = ours(shape)
    reference = theirs(model)
    source, target = (model, reference) if direction == "ours in theirs" else (reference, model)
    target.load_state_dict(source.state_dict(), strict=True)
    assert 2 ** (len(reference.config.block_out_channels) - 1) == model.size_multiple
    for images in pictures(model.size_multiple):
        encoded = reference.encode(images)
        latents = model.encode(images).latent
        if not hasattr(reference, "quantize"):
            mean, log_variance = model.encode_distribution(images)
            assert_equal(mean, encoded.latent_dist.mean)
            assert_equal(log_variance, encoded.latent_dist.logvar)
            decoded, whole = reference.decode(latents).sample, reference(images).sample
        else:
            codes, loss, _ = reference.quantize(encoded.latents)
            assert_equal(latents, codes)
            terms = model.encode(images).terms
            legacy = terms["commitment"] + model.options.commitment_weight * terms["codebook"]  # their β, misplaced
            assert_equal(legacy, loss)
            decoded, whole = reference.decode(codes).sample, reference(images).sample
        assert_equal(model.decode(latents), decoded.clamp(-1, 1))
        assert_equal(model(images), whole.clamp(-1, 1))
        assert_equal(model.train().decode(latents), decoded)
        model.eval()


def test_log_variances_have_the_same_bounds():
    model = ours("SD3 and FLUX")
    reference = theirs(model)
    with torch.no_grad():
        model.encoder.conv_out.bias.copy_(torch.cat([torch.zeros(16), torch.linspace(-40, 40, 16)]))
        reference.load_state_dict(model.state_dict())
        images = pictures(8)[0]
        log_variance = model.encode_distribution(images)[1]
        assert_equal(log_variance, reference.encode(images).latent_dist.logvar)
    assert log_variance.min() == -30 and log_variance.max() == 20


def test_the_sum_of_the_kl_is_theirs():
    model = ours("SD and SDXL").eval()
    reference = theirs(model)
    reference.load_state_dict(model.state_dict())
    images = pictures(8)[1]
    with torch.no_grad():
        expected = reference.encode(images).latent_dist.kl()  # a sum over each image's latent
        encoded = model.encode(images)
    found = encoded.terms["kl"] * encoded.latent[0].numel()
    torch.testing.assert_close(found, expected.mean(), rtol=1e-5, atol=0)


def test_parameters_of_stable_diffusion():
    options = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4}
    model = registry.build_on_meta("kl", registry.resolve_options("kl", options | {"norm_num_groups": 32}))
    assert sum(each.numel() for each in model.encoder.parameters()) == 34_163_592
    assert sum(each.numel() for each in model.decoder.parameters()) == 49_490_179
