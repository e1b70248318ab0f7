"""diffusers' configs of image autoencoders: which of aecli's own networks they describe, and how latents are scaled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aecli.models.latent_scaling import LatentScaling
from aecli.storage.strict_json import is_count, is_number, short_repr

CLASSES = ("AutoencoderKL", "VQModel", "AutoencoderTiny", "AutoencoderDC")

# The defaults of diffusers' classes, for keys that a config leaves out.
_NETWORK = {"block_out_channels": [64], "layers_per_block": 1, "norm_num_groups": 32, "mid_block_add_attention": True}
_KL = {**_NETWORK, "latent_channels": 4, "use_quant_conv": True, "use_post_quant_conv": True}
_VQ = {**_NETWORK, "latent_channels": 3, "num_vq_embeddings": 256, "vq_embed_dim": None}
_OWN = {"AutoencoderKL": ("kl", _KL), "VQModel": ("vq", _VQ)}
_RENAMED = {"num_vq_embeddings": "codebook_size"}
_OWN_BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
_OWN_VALUES = {"in_channels": 3, "out_channels": 3, "act_fn": "silu", "norm_type": "group"}
_NOT_OF_THE_NETWORK = {
    "sample_size", "scaling_factor", "shift_factor", "latents_mean", "latents_std", "force_upcast",
    "lookup_from_codebook",  # for latents that are given as indices
}  # fmt: skip
_DEFAULT_STAGES = {"AutoencoderTiny": 4, "AutoencoderDC": 6}
_SCALING_FACTOR = {"AutoencoderKL": 0.18215, "VQModel": 0.18215}  # where a config doesn't say it; others have 1


@dataclass(frozen=True)
class DiffusersConfig:
    """A config of one of `CLASSES`: its keys, but for diffusers' notes, which begin with an underscore."""

    class_name: str
    values: Mapping[str, Any]

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "DiffusersConfig":
        """Return the config of a JSON object that has a `_class_name`.

        Raises:
            ValueError: it is another class's, or its pictures are not RGB.
        """
        name = document["_class_name"]
        if name not in CLASSES:
            raise ValueError(f"a {short_repr(name)[1:-1]} is not one of {', '.join(CLASSES)}")
        # AutoencoderTiny notes its decoder's channels a second time.
        notes = {"block_out_channels"} if name == "AutoencoderTiny" else set()
        values = {key: value for key, value in document.items() if not key.startswith("_") and key not in notes}
        for key in ("in_channels", "out_channels"):
            if values.get(key, 3) != 3:
                raise ValueError(f"{key} {short_repr(values[key])}: aecli's pictures have 3")
        return cls(name, values)

    def own_model(self) -> tuple[str, dict[str, Any]] | None:
        """Return aecli's `kl` or `vq` and its options where that is this network exactly; None for any other."""
        if self.class_name not in _OWN:
            return None
        name, defaults = _OWN[self.class_name]
        merged = {**defaults, **self.values}
        widths = merged["block_out_channels"]
        if not isinstance(widths, list):
            return None
        if merged.keys() - defaults.keys() - _OWN_BLOCKS.keys() - _OWN_VALUES.keys() - _NOT_OF_THE_NETWORK:
            return None
        if any(merged.get(key, value) != value for key, value in _OWN_VALUES.items()):
            return None
        if any(merged.get(key, [block]) != [block] * len(widths) for key, block in _OWN_BLOCKS.items()):
            return None
        return name, {_RENAMED.get(key, key): merged[key] for key in defaults}

    @property
    def downsampling(self) -> int:
        """Side of the patch that a position of the latent stands for, in pixels."""
        stages = _DEFAULT_STAGES.get(self.class_name, 1)
        for key in ("block_out_channels", "encoder_block_out_channels"):
            if isinstance(widths := self.values.get(key), list):
                stages = len(widths)
        return 1 << max(0, stages - 1)

    @property
    def sample_size(self) -> int | None:
        """The side of images that it names, if the network can have that; or None."""
        size = self.values.get("sample_size")
        return size if is_count(size) and size > 0 and size % self.downsampling == 0 else None

    def latent_scaling(self) -> LatentScaling:
        """Return what its keys say: (z - shift_factor) · scaling_factor, or (z - latents_mean) · scaling_factor / std.

        Raises:
            ValueError: they are no numbers, the factor is 0, or there is more than one shift.
        """
        factor = self.values.get("scaling_factor")
        factor = _SCALING_FACTOR.get(self.class_name, 1.0) if factor is None else factor
        mean, std = (self.values.get(key) for key in ("latents_mean", "latents_std"))
        shift = self.values.get("shift_factor") or 0.0
        if shift and mean is not None:
            raise ValueError("shift_factor and latents_mean: only one of them can be applied")
        deviations = [1.0] if std is None else std
        if not is_number(factor) or not isinstance(deviations, list) or not all(map(is_number, deviations)):
            raise ValueError("invalid scaling_factor or latents_std")
        if 0 in deviations:
            raise ValueError("invalid latents_std: 0")
        return LatentScaling.from_json(
            {"factor": [factor / each for each in deviations], "shift": shift if mean is None else mean}
        )
