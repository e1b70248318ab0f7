"""Small autoencoders of diffusers, in the shapes of those that are published."""

import torch
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny, VQModel

_NARROW = {"block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4, "sample_size": 32}
_FOUR = {
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2,
}  # fmt: skip
_KL = {**_NARROW, **_FOUR}
_16 = {**_KL, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}


def _attentive(resolutions, first):
    """An encoder and a decoder of that many resolutions, with attention from that one on."""
    kinds = [["DownEncoderBlock2D", "UpDecoderBlock2D"], ["AttnDownEncoderBlock2D", "AttnUpDecoderBlock2D"]]
    down = tuple(kinds[index >= first][0] for index in range(resolutions))
    up = tuple(kinds[index >= first][1] for index in reversed(range(resolutions)))
    return {"down_block_types": down, "up_block_types": up}


def _deep(stages, attentive, decoder_norm):
    """A DC-AE of that many stages, the last of which have linear attention."""
    widths = tuple(16 * 2 ** min(index, 1) for index in range(stages))
    kinds = ["ResBlock"] * (stages - attentive) + ["EfficientViTBlock"] * attentive
    scales = [[]] * (stages - attentive) + [[5]] * attentive
    layers = [0 if index == 0 else 1 for index in range(stages)]
    both = {"block_types": kinds, "block_out_channels": widths, "layers_per_block": layers, "qkv_multiscales": scales}
    sides = {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in both.items()}
    norms = {
        "decoder_norm_types": [decoder_norm] * (stages - attentive) + ["rms_norm"] * attentive,
        "decoder_act_fns": ["relu"] * (stages - attentive) + ["silu"] * attentive,
    }
    return {**sides, **norms, "attention_head_dim": 8, "latent_channels": 8, "downsample_block_type": "Conv",
            "upsample_block_type": "interpolate" if decoder_norm == "rms_norm" else "pixel_shuffle"}  # fmt: skip


# By what is published in that shape: the class, the config, and whether aecli's own network computes it.
MODELS = {
    "SD": (AutoencoderKL, _KL, True),
    "SDXL": (AutoencoderKL, {**_KL, "scaling_factor": 0.13025, "force_upcast": True, "sample_size": 64}, True),
    "SD3": (AutoencoderKL, {**_16, "scaling_factor": 1.5305, "shift_factor": 0.0609}, True),
    "FLUX": (AutoencoderKL, {**_16, "scaling_factor": 0.3611, "shift_factor": 0.1159}, True),
    "latents by channel": (AutoencoderKL, {**_KL, "scaling_factor": 0.5, "latents_mean": [-1.6574, 1.886, -1.383, 2.5],
                                           "latents_std": [8.4927, 5.9022, 6.5498, 5.2299]}, True),  # fmt: skip
    "KL-f16": (AutoencoderKL, {**_NARROW, **_attentive(4, 3), "latent_channels": 16}, False),
    "VQ-f8": (VQModel, {**_KL, "num_vq_embeddings": 32, "latent_channels": 4}, True),
    "aMUSEd": (VQModel, {**_KL, "num_vq_embeddings": 32, "vq_embed_dim": 6, "latent_channels": 8,
                         "mid_block_add_attention": False, "lookup_from_codebook": True}, True),  # fmt: skip
    "MoVQ": (VQModel, {"block_out_channels": (32,) * 4, **_attentive(4, 3), "num_vq_embeddings": 32,
                       "norm_type": "spatial"}, False),
    "TAESD": (AutoencoderTiny, {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}, False),
    "TAEF1": (AutoencoderTiny, {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4,
                                "latent_channels": 16, "scaling_factor": 1.0, "shift_factor": 0.0}, False),  # fmt: skip
    "DC-AE f32": (AutoencoderDC, {**_deep(6, 3, "batch_norm"), "scaling_factor": 0.3189}, False),
    "DC-AE f32 of SANA": (AutoencoderDC, {**_deep(6, 3, "rms_norm"), "scaling_factor": 0.41407}, False),
    "DC-AE f64": (AutoencoderDC, {**_deep(7, 3, "batch_norm"), "scaling_factor": 0.2889}, False),
}  # fmt: skip


@torch.no_grad()
def build(name):
    """The model of that name, with norms that do something and codes that differ, in `eval()` mode."""
    kind, config, _ = MODELS[name]
    torch.manual_seed(0)
    model = kind(**config).eval()
    for key, value in model.named_parameters():
        if "norm" in key or "embedding" in key:
            value.add_(torch.randn(value.shape) / 4)
    for key, value in model.named_buffers():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2)
    return model


def save(name, folder, **options):
    """Write the model of that name as diffusers does; returns it."""
    model = build(name)
    model.save_pretrained(folder, **options)
    return model
