"""One frozen dataclass per command: the only place of every default and its checks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aecli.configs.commands import (
        CompareConfig,
        EvalConfig,
        ExportConfig,
        GridConfig,
        InterpolateConfig,
        ModelsConfig,
        ReconstructConfig,
        SampleConfig,
        ScoreConfig,
        TraverseConfig,
    )
    from aecli.configs.latents import DecodeConfig, EncodeConfig
    from aecli.configs.train import TrainConfig

__all__ = [
    "CompareConfig", "DecodeConfig", "EncodeConfig", "EvalConfig", "ExportConfig", "GridConfig", "InterpolateConfig",
    "ModelsConfig", "ReconstructConfig", "SampleConfig", "ScoreConfig", "TrainConfig", "TraverseConfig",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a config on first use, because a command's `--help` needs only its own."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = {"TrainConfig": "train", "EncodeConfig": "latents", "DecodeConfig": "latents"}.get(name, "commands")
    return getattr(import_module(f"{__name__}.{module}"), name)
