"""The model with a codebook: what is counted of it, how it begins, and which optimizer takes it."""

import pytest
import torch

from aecli.configs.train import OptimizationConfig
from aecli.errors import ConfigError
from aecli.models import registry
from aecli.models.codes import batch_stats, nearest
from aecli.training.optim import build_optimizers
from tests.support.photographs import photographs
from tests.support.plain_models import build

SMALL = {"block_out_channels": (8, 16), "norm_num_groups": 4, "codebook_size": 32, "vq_embed_dim": 3}


def test_nearest_codes_are_those_at_the_least_distance(monkeypatch):
    vectors, codebook = torch.randn(50, 3), torch.randn(7, 3)
    expected = torch.cdist(vectors, codebook).argmin(1)
    assert torch.equal(nearest(vectors[None], codebook[None])[0], expected)
    monkeypatch.setattr("aecli.models.codes._MOST_DISTANCES", 100)  # in parts
    assert torch.equal(nearest(vectors[None], codebook[None])[0], expected)


def test_usage_and_perplexity():
    even = batch_stats(torch.arange(8).view(2, 2, 2), 32)
    assert even["codebook_usage"] == 0.25 and float(even["perplexity"]) == pytest.approx(8)
    uneven = batch_stats(torch.tensor([0, 0, 0, 5]), 32)  # exp(-¾·log ¾ - ¼·log ¼)
    assert float(uneven["perplexity"]) == pytest.approx(1.7548, abs=1e-4)


def test_what_is_kept_is_the_bits_of_the_indices():
    assert str(build("vq", **SMALL).kept(64)) == "1.25 bits a pixel"  # 5 bits for 2×2 pixels
    assert str(build("kl").kept(64)) == "1/12"


def test_the_codebook_begins_as_vectors_of_images_and_is_used():
    model, images = build("vq", **SMALL).eval(), photographs(4, 32)
    with torch.no_grad():
        before = model.encode(images).stats["codebook_usage"]
        model.prepare(iter(images.split(2)))
        vectors = model.quant_conv(model.encoder(images)).movedim(1, -1).flatten(0, 2)
        distances = torch.cdist(model.quantize.embedding.weight, vectors).min(1).values
        after = model.encode(images).stats["codebook_usage"]
    assert distances.max() < 1e-3 and after > 0.9 > 2 * before
    model.prepare([images[:1, :, :4, :4]])  # fewer vectors than codes
    assert model.quantize.embedding.weight.isfinite().all()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_codebook_is_no_kernel(optimizer):
    model = build("vq", **SMALL)
    optimizers, matrices = build_optimizers(
        model, OptimizationConfig(optimizer=optimizer, weight_decay=0.1), model.betas
    )
    codebook = model.quantize.embedding.weight
    assert codebook not in matrices
    (decay,) = [
        group["weight_decay"] for each in optimizers for group in each.param_groups
        if any(one is codebook for one in group["params"])
    ]  # fmt: skip
    assert decay == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"block_out_channels": "12,30", "norm_num_groups": 4},
            "block_out_channels 12,30: expected multiples of the 4",
        ),
        ({"block_out_channels": "8," * 8 + "8"}, "at most 8 numbers"),
        ({"block_out_channels": "8,x"}, "block_out_channels=x: expected int"),
        ({"codebook_size": 1}, "--option codebook_size 1: expected a whole number from 2"),
        ({"layers_per_block": 0}, "--option layers_per_block 0: expected"),
        ({"mid_block_add_attention": "maybe"}, "mid_block_add_attention=maybe: expected bool"),
    ],
)
def test_options_are_checked(options, said):
    with pytest.raises(ConfigError, match=said):
        registry.resolve_options("vq", options)
