"""ONNX, `encoder.onnx` and `decoder.onnx`, for whatever runs that: onnxruntime, browsers, phones."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import ExportedProgram

from aecli.errors import ConfigError
from aecli.inference.export.programs import Programs

OPSET = 20
_LOGGERS = ("onnxscript", "onnx_ir", "torch.onnx")


def require_onnx() -> None:
    """Raise ConfigError where a package of the extra `onnx` is missing."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError('--format onnx: a package is missing\nhint: pip install "aecli[onnx]"') from error


def onnx_files(programs: Programs, facts: dict[str, str]) -> dict[str, bytes]:
    """Return both networks by name, in opset `OPSET`, with `facts` as their metadata."""
    latent = ("latent_height", "latent_width")
    names = ({"images": ("height", "width"), "latents": latent}, {"latents": latent, "images": ("height", "width")})
    return {
        "encoder.onnx": _converted(programs.encoder, names[0], programs.image_size is None, facts),
        "decoder.onnx": _converted(programs.decoder, names[1], programs.image_size is None, facts),
    }


def _converted(
    program: ExportedProgram, names: dict[str, tuple[str, str]], is_dynamic: bool, facts: dict[str, str]
) -> bytes:
    """Return a program as ONNX, whose input and output are named and have those names as sizes."""
    (taken, _), (made, _) = names.items()
    with _without_chatter():
        converted: Any = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=[taken], output_names=[made], verbose=False
        )
    model = converted.model
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape[0] = "count"
        if is_dynamic:
            value.shape[2], value.shape[3] = names[value.name]
    model.metadata_props.update(facts)
    content: bytes = converted.model_proto.SerializeToString()
    return content


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep quiet what the converter says of its own passes."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    try:
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
