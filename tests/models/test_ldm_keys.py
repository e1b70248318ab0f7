"""Weights of latent diffusion's autoencoders under the names of other code, read from files."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from aecli.errors import CheckpointError
from aecli.models import ldm_keys
from aecli.runs import checkpoints
from tests.support.plain_models import build

SMALL = {"block_out_channels": (32, 64), "norm_num_groups": 32, "layers_per_block": 2, "latent_channels": 4}
OPTIONS = {"kl": SMALL, "vq": SMALL | {"codebook_size": 8, "vq_embed_dim": 6}}
ORIGINAL = {
    "encoder.mid_block.attentions.0.to_out.0.bias": "encoder.mid.attn_1.proj_out.bias",
    "encoder.mid_block.attentions.0.group_norm.weight": "encoder.mid.attn_1.norm.weight",
    "decoder.mid_block.resnets.1.norm2.weight": "decoder.mid.block_2.norm2.weight",
    "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": "encoder.down.1.block.0.nin_shortcut.weight",
    "encoder.down_blocks.0.downsamplers.0.conv.bias": "encoder.down.0.downsample.conv.bias",
    "decoder.up_blocks.0.upsamplers.0.conv.weight": "decoder.up.1.upsample.conv.weight",
    "decoder.up_blocks.1.resnets.2.conv1.weight": "decoder.up.0.block.2.conv1.weight",
    "decoder.conv_norm_out.bias": "decoder.norm_out.bias",
    "post_quant_conv.weight": "post_quant_conv.weight",
}


def original(weights):
    """The weights by the original code's names, attention as 1×1 convolutions."""
    count = 1 + max(int(found[1]) for key in weights if (found := re.match(r"decoder\.up_blocks\.(\d+)", key)))
    made = {}
    for key, value in weights.items():
        name = re.sub(r"^decoder\.up_blocks\.(\d+)", lambda found: f"decoder.up.{count - 1 - int(found[1])}", key)
        if ".attentions." in key:
            value = value[..., None, None] if key.endswith("weight") and value.ndim == 2 else value
            for ours, theirs in {
                "group_norm": "norm",
                "to_q": "q",
                "to_k": "k",
                "to_v": "v",
                "to_out.0": "proj_out",
            }.items():
                name = name.replace(f".{ours}.", f".{theirs}.")
        for ours, theirs in {
            "down_blocks": "down", "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
            "mid_block.attentions.0": "mid.attn_1", "resnets": "block", "conv_shortcut": "nin_shortcut",
            "downsamplers.0": "downsample", "upsamplers.0": "upsample", "conv_norm_out": "norm_out",
        }.items():  # fmt: skip
            name = name.replace(ours, theirs)
        made[name] = value
    return made


def older_diffusers(weights):
    renamed = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for ours, theirs in renamed.items():
        weights = {key.replace(ours, theirs): value for key, value in weights.items()}
    return weights


@pytest.mark.parametrize("name", ["kl", "vq"])
@pytest.mark.parametrize("rename", [dict, original, older_diffusers])
@pytest.mark.parametrize(
    "others", [{}, {"model.diffusion_model.out.weight": torch.zeros(1), "decoder.x": torch.zeros(2)}]
)
def test_weights_under_other_names_are_read(name, rename, others, tmp_path):
    model = build(name, **OPTIONS[name]).eval()
    prefix = "first_stage_model." if others else ""
    renamed = {prefix + key: value.contiguous() for key, value in rename(model.state_dict()).items()}
    save_file(renamed | others, tmp_path / "m.safetensors")
    told = []
    loaded, document = checkpoints.load_model(tmp_path / "m.safetensors", listen=told.append)
    assert document["model"] == name and loaded.options == model.options
    images = torch.rand(1, 3, 16, 16)
    assert torch.equal(loaded(images), model(images))
    assert [prefix in notice.text or "2 tensors" in notice.text for notice in told] == [True] * len(others)


def test_the_names_of_the_original_code():
    weights = build("kl", **SMALL).state_dict()
    theirs = original(weights)
    assert ORIGINAL.items() <= dict(zip(weights, theirs, strict=True)).items()  # the test's own renaming
    found = ldm_keys.current_keys(theirs)
    assert list(found.values()) == list(weights)


def test_diffusers_reads_the_original_names_alike():
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    theirs = original(build("kl", **SMALL).state_dict())
    config = {"down_block_types": [""] * 2, "up_block_types": [""] * 2}
    expected = convert_ldm_vae_checkpoint({f"first_stage_model.{key}": value for key, value in theirs.items()}, config)
    found = {current: theirs[key] for key, current in ldm_keys.current_keys(theirs).items()}
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert ldm_keys.current_shape(key, found[key].shape) == value.shape
        assert torch.equal(found[key].reshape(value.shape), value)


def test_weights_without_the_decoder_are_refused(tmp_path):
    weights = {key: value for key, value in build("kl", **SMALL).state_dict().items() if "decoder" not in key}
    save_file(weights, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="no weights of an aecli model"):
        checkpoints.load_model(Path(tmp_path / "m.safetensors"))
