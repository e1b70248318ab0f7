"""diffusers' folders: `config.json` and `diffusion_pytorch_model.safetensors` of an AutoencoderKL or a VQModel."""

import json
from typing import Any

from safetensors.torch import save

from aecli.errors import ModelError
from aecli.inference.export.subject import Subject
from aecli.inference.loaded_model import LoadedModel
from aecli.models.kl import KL
from aecli.models.latent_scaling import LatentScaling
from aecli.models.vq import VQ

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
_CLASSES = {KL: "AutoencoderKL", VQ: "VQModel"}


def diffusers_class(loaded: LoadedModel) -> str:
    """Return the name of diffusers' class that has the model's network.

    Raises:
        ModelError: none has.
    """
    name = _CLASSES.get(type(loaded.model))
    if name is None:
        raise ModelError(f"--format diffusers: diffusers has the networks of kl and vq, not that of {loaded.name!r}\n"
                         "hint: --format onnx")  # fmt: skip
    return name


def diffusers_files(subject: Subject) -> dict[str, bytes]:
    """Return config and weights by name, which are the model's bit for bit."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in subject.loaded.model.state_dict().items()}
    config = json.dumps(diffusers_config(subject), indent=2, sort_keys=True) + "\n"
    return {
        WEIGHTS: save(tensors, metadata={"format": "pt"}),
        CONFIG: config.encode(),
    }


def diffusers_config(subject: Subject) -> dict[str, Any]:
    """Return config.json: the network, `scaling_factor` and shift of its latents, and `force_upcast`.

    `force_upcast` asks pipelines in float16 to decode in float32; it is set where activations may go beyond float16's
    range. Where they were not measured it is as it was in a diffusers folder, or else set.
    """
    loaded, options = subject.loaded, subject.loaded.model.options
    blocks = len(options.block_out_channels)
    config: dict[str, Any] = {
        "_class_name": diffusers_class(loaded),
        "act_fn": "silu",
        "block_out_channels": list(options.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * blocks,
        "force_upcast": subject.needs_upcast,
        "in_channels": 3,
        "latent_channels": options.latent_channels,
        "layers_per_block": options.layers_per_block,
        "mid_block_add_attention": options.mid_block_add_attention,
        "norm_num_groups": options.norm_num_groups,
        "out_channels": 3,
        "sample_size": loaded.image_size,
        "up_block_types": ["UpDecoderBlock2D"] * blocks,
    }
    if isinstance(loaded.model, VQ):
        config |= {"num_vq_embeddings": options.codebook_size, "vq_embed_dim": options.code_dim}
        scaling = subject.scaling or LatentScaling()
        return config | {"scaling_factor": scaling.factor[0]}
    config |= {"use_post_quant_conv": options.use_post_quant_conv, "use_quant_conv": options.use_quant_conv}
    return config | _scaling_keys(subject.scaling or LatentScaling())


def _scaling_keys(scaling: LatentScaling) -> dict[str, Any]:
    """Return the keys of AutoencoderKL that say (z - shift) · factor."""
    if len(scaling.factor) == len(scaling.shift) == 1:
        return {"scaling_factor": scaling.factor[0], "shift_factor": scaling.shift[0] or None}
    channels = max(len(scaling.factor), len(scaling.shift))
    factor, shift = (list(each) * (channels // len(each)) for each in (scaling.factor, scaling.shift))
    return {"scaling_factor": 1.0, "shift_factor": None, "latents_mean": shift, "latents_std": [1 / x for x in factor]}
