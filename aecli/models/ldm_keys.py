"""Names of weights of latent diffusion's autoencoders in other code, and options that follow from shapes.

The names of diffusers are aecli's own. The original code's (CompVis/latent-diffusion, and single files made with it)
count the decoder's blocks from the other end and have 1×1 convolutions where diffusers' attention has matrices.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

FIRST = "encoder.conv_in.weight"  # in every such model, whichever the names
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.")
_PUBLISHED_GROUPS = 32  # of GroupNorm, which no shape tells, in all published models

_LAYERS = {"nin_shortcut": "conv_shortcut", "norm_out": "conv_norm_out"}
_MID = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}
_ATTENTION = {
    "norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0",
    "query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0",  # of older diffusers
}  # fmt: skip
_ORIGINAL = re.compile(r"(encoder|decoder)\.(mid|down|up)\.")


def current_keys(keys: Iterable[str]) -> dict[str, str]:
    """Return diffusers' present name of each of `keys`, by name; those of other networks in the file are left out."""
    own = [key for key in keys if key.startswith(_PARTS)]
    ups = {int(found[1]) for key in own if (found := re.match(r"decoder\.up\.(\d{1,4})\.", key))}
    return {key: _current_key(key, len(ups)) for key in own}


def current_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the tensor called `key` there: a matrix for attention's 1×1 convolutions."""
    return shape[:2] if ".attentions." in key and shape[2:] == (1, 1) else shape


def options_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, dict[str, Any]] | None:
    """Return model and options for the weights of these `shapes` by current name; None if they are something else."""
    blocks = _count(shapes, r"encoder\.down_blocks\.(\d+)\.resnets\.0\.conv1\.weight")
    first = [shapes.get(f"encoder.down_blocks.{number}.resnets.0.conv1.weight", ()) for number in range(blocks)]
    last = shapes.get("decoder.conv_in.weight", ())
    if not blocks or any(len(shape) != 4 for shape in (*first, last)):
        return None
    widths = [shape[0] for shape in first]
    options: dict[str, Any] = {
        "block_out_channels": widths, "latent_channels": last[1],
        "layers_per_block": _count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\.conv1\.weight"),
        "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in shapes,
    }  # fmt: skip
    if all(width % _PUBLISHED_GROUPS == 0 for width in widths):
        options["norm_num_groups"] = _PUBLISHED_GROUPS
    codebook = shapes.get("quantize.embedding.weight")
    if codebook is None:
        options["use_quant_conv"] = "quant_conv.weight" in shapes
        options["use_post_quant_conv"] = "post_quant_conv.weight" in shapes
        return "kl", options
    return ("vq", options | {"codebook_size": codebook[0], "vq_embed_dim": codebook[1]}) if len(codebook) == 2 else None


def _current_key(key: str, ups: int) -> str:
    if not _ORIGINAL.match(key):
        names = _ATTENTION if ".attentions." in key else _LAYERS
        return ".".join(names.get(part, part) for part in key.split("."))
    network, where, *rest = key.split(".")
    if where == "mid":
        block, *layer = rest
        names = _ATTENTION if block == "attn_1" else _LAYERS
        return ".".join([network, "mid_block", _MID.get(block, block), *(names.get(part, part) for part in layer)])
    level, kind, *layer = rest
    if where == "up" and level.isdecimal():
        level = str(ups - 1 - int(level))
    kinds = {"block": "resnets", "downsample": "downsamplers.0", "upsample": "upsamplers.0"}
    renamed = [_LAYERS.get(part, part) for part in layer]
    return ".".join([network, f"{where}_blocks", level, kinds.get(kind, kind), *renamed])


def _count(keys: Iterable[str], pattern: str) -> int:
    return len({found[1] for key in keys if (found := re.fullmatch(pattern, key))})
