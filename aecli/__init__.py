"""aecli: train, reconstruct, sample, measure and draw with image autoencoders.

model = aecli.load("runs/vae")
model.encode(images), model.decode(latents), model.reconstruct(images), model.sample(8, seed=1)
aecli.encode_folder("vae", "photos", "latents", format="npy"), aecli.decode_folder("vae", "latents", "pictures")
aecli.export_model("vae", "exported", format="onnx")
aecli.evaluate("truth", {"vae": "reconstructions/vae"})
for report in aecli.train(aecli.TrainConfig("vae", data="photos")): ...
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aecli._version import __version__

if TYPE_CHECKING:
    from aecli.api import Model, decode_folder, encode_folder, evaluate, export_model, load, train
    from aecli.configs import EvalConfig, TrainConfig
    from aecli.errors import AecliError

__all__ = [
    "AecliError", "EvalConfig", "Model", "TrainConfig", "__version__", "decode_folder", "encode_folder", "evaluate",
    "export_model", "load", "train",
]  # fmt: skip

_HOMES = {
    "AecliError": "errors", "EvalConfig": "configs", "TrainConfig": "configs",
    "Model": "api", "decode_folder": "api", "encode_folder": "api", "evaluate": "api", "export_model": "api",
    "load": "api", "train": "api",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that importing aecli doesn't import PyTorch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"aecli.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
