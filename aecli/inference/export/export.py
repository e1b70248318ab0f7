"""`export`: a folder with a model in another program's format, its card, and on request its upload."""

from dataclasses import dataclass
from pathlib import Path

from aecli.configs import ExportConfig
from aecli.data.image_ref import ImageRef
from aecli.errors import DataError, OutputError
from aecli.inference.export.hub import push_folder, require_login
from aecli.inference.export.latent_statistics import LatentStatistics, measure_latents
from aecli.inference.export.model_card import CARD, card_text, describe
from aecli.inference.export.programs import trace
from aecli.inference.export.subject import Subject
from aecli.inference.export.to_diffusers import diffusers_class, diffusers_files
from aecli.inference.export.to_onnx import onnx_files, require_onnx
from aecli.inference.export.to_torch import torch_files
from aecli.inference.loaded_model import LoadedModel, load_model
from aecli.models.latent_scaling import LatentScaling
from aecli.models.vq import VQ
from aecli.progress import Listener, Notice, ignore
from aecli.runs.folder import RunFolder
from aecli.runs.images import choose_images
from aecli.storage.atomic_files import write_bytes
from aecli.storage.outputs import forbid_overwriting_inputs, prepare_output_folder


@dataclass(frozen=True)
class ExportResult:
    """The folder, the names of its files, how latents are to be scaled, if known, and the address of an upload."""

    out: Path
    files: list[str]
    scaling: LatentScaling | None
    statistics: LatentStatistics | None
    url: str | None = None


def export_model(config: ExportConfig, listen: Listener = ignore) -> ExportResult:
    """Write a model in the format of another program, and a model card; upload them if `config.push` says where to.

    Raises:
        ModelError: the format can't have such a model.
        AecliError: the model, the images or the folder can't be used, a package is missing, or the upload failed.
    """
    loaded = load_model(config.model, config.runs, config.device, "fp32", listen)
    if config.format == "diffusers":
        diffusers_class(loaded)
    if config.format == "onnx":
        require_onnx()
    if config.push is not None:
        require_login(config.push)
    images = _images(loaded, config.data, listen)
    if RunFolder(config.out).exists() and RunFolder(config.out).is_ours():
        raise OutputError(f"--out {config.out} is the folder of a run\nhint: name another place")
    prepare_output_folder(config.out, config.overwrite, listen)
    statistics = measure_latents(loaded, images, listen) if images else None
    subject = Subject(loaded, _scaling(loaded, statistics, config.format), statistics)
    if subject.scaling is None:
        listen(Notice("how latents are to be scaled is left open: it is unknown without images (--data)"))
    written, sizes = _files(config.format, subject, listen)
    written[CARD] = card_text(subject, config.format, config.license, sizes).encode()
    forbid_overwriting_inputs("--out", (config.out / name for name in written), _inputs(loaded))
    for name, content in written.items():
        write_bytes(config.out / name, content)
    url = None if config.push is None else push_folder(config.out, list(written), config.push)
    return ExportResult(config.out, list(written), subject.scaling, statistics, url)


def _images(loaded: LoadedModel, data: str | None, listen: Listener) -> list[ImageRef]:
    """Return the images of `data`, or those that the run trained on; none where these are gone, which is told."""
    if data is not None:
        return choose_images(loaded.located, data, None, listen)
    if loaded.located.run is None:
        return []
    try:
        return choose_images(loaded.located, None, "train", listen)
    except DataError as error:
        listen(Notice(f"no statistics of latents: {error.headline}"))
        return []


def _scaling(loaded: LoadedModel, statistics: LatentStatistics | None, format_name: str) -> LatentScaling | None:
    if not loaded.latent_scaling.is_identity:
        return loaded.latent_scaling
    if statistics is None:
        return None
    found = statistics.scaling()
    # A VQModel's config has no shift.
    return LatentScaling(found.factor) if format_name == "diffusers" and isinstance(loaded.model, VQ) else found


def _files(format_name: str, subject: Subject, listen: Listener) -> tuple[dict[str, bytes], str]:
    """Return the format's files by name, and the sizes of images in words."""
    if format_name == "diffusers":
        return diffusers_files(subject), f"any sides that are multiples of {subject.loaded.model.size_multiple}"
    programs = trace(subject.loaded, listen)
    facts = describe(subject, programs.sizes)
    return (onnx_files if format_name == "onnx" else torch_files)(programs, facts), programs.sizes


def _inputs(loaded: LoadedModel) -> list[str]:
    """Return the files that the model is read from."""
    checkpoint = loaded.located.checkpoint
    return [str(path) for path in checkpoint.parent.iterdir()] if checkpoint.is_file() else [str(checkpoint)]
