"""The model card: what the model is, how it is loaded, on what and how it was trained, and how well it does."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from aecli._version import __version__
from aecli.configs.options import DATA, RECIPE
from aecli.configs.train import train_options
from aecli.errors import count_of, single_line
from aecli.inference.export.subject import Subject
from aecli.inference.export.to_diffusers import diffusers_class
from aecli.models.latent_scaling import LatentScaling
from aecli.models.posterior import GaussianAutoencoder
from aecli.runs import checkpoints
from aecli.storage.strict_json import is_number

CARD = "README.md"
_NAMED = ("demo", "torchvision:", "hf:")  # sources that are no paths
_ALWAYS = ("image_size", "fit", "epochs", "batch_size", "optimizer", "lr", "schedule", "pixel_loss")
_LEFT_OUT = ("val_images", "cache", "shuffle_buffer", "skip_broken", "allow_changed_data", "background")
_NUMBERS = {"val_psnr": "PSNR (dB)", "val_ssim": "SSIM", "val_lpips": "LPIPS (alex)", "val_loss": "loss"}

_LOADED = {
    "diffusers": """from diffusers import {kind}
vae = {kind}.from_pretrained(".")
pictures = vae(images).sample""",
    "onnx": """import onnxruntime
encoder, decoder = (onnxruntime.InferenceSession(f"{{part}}.onnx") for part in ("encoder", "decoder"))
latents = encoder.run(None, {{"images": images}})[0]
pictures = decoder.run(None, {{"latents": latents}})[0]""",
    "torch": """import torch
encoder, decoder = (torch.export.load(f"{{part}}.pt2").module() for part in ("encoder", "decoder"))
pictures = decoder(encoder(images))""",
}


def describe(subject: Subject, sizes: str) -> dict[str, str]:
    """Return what a program that runs the model has to know, as texts by name."""
    loaded, scaling = subject.loaded, subject.scaling
    facts = {
        "aecli": __version__,
        "model": loaded.name,
        "images": "float32 (N, 3, H, W), RGB from -1 to 1",
        "sizes": sizes,
        "latents": f"float32 (N, {', '.join(map(str, loaded.model.latent_shape(loaded.image_size)))}) for images of "
        f"{loaded.image_size} pixels" + (", the means of the posterior" if _has_posterior(subject) else ""),
    }  # fmt: skip
    if dataclasses.is_dataclass(loaded.model.options) and not isinstance(loaded.model.options, type):
        facts["options"] = json.dumps(dataclasses.asdict(loaded.model.options))
    if scaling is not None:
        facts |= {"scaling": "(latents - shift) * factor"}
        facts |= {name: json.dumps(value) for name, value in scaling.to_json().items()}
    return facts


def card_text(subject: Subject, format_name: str, license_id: str | None, sizes: str) -> str:
    """Return the card as Markdown with front matter, as the Hugging Face Hub reads it."""
    return "\n\n".join([
        _front_matter(subject, format_name, license_id),
        f"# {subject.loaded.title}, an image autoencoder",
        _what(subject, license_id),
        *_use(subject, format_name, sizes),
        *_training(subject),
        f"Exported by aecli {__version__}.",
    ]) + "\n"  # fmt: skip


def _front_matter(subject: Subject, format_name: str, license_id: str | None) -> str:
    lines = [
        *([f"license: {license_id}"] if license_id else []),
        *(["library_name: diffusers"] if format_name == "diffusers" else []),
        "tags:",
        *(f"- {tag}" for tag in ("aecli", "autoencoder", "image-reconstruction", format_name)),
    ]
    return "\n".join(["---", *lines, "---"])


def _what(subject: Subject, license_id: str | None) -> str:
    loaded = subject.loaded
    shape = "×".join(map(str, loaded.model.latent_shape(loaded.image_size)))
    parameters = sum(value.numel() for value in loaded.model.parameters())
    stated = f"Licence: {license_id}." if license_id else "No licence is stated (`aecli export --license ID` does)."
    return (f"aecli's model `{loaded.name}`, with {count_of(parameters, 'parameter')}: of {loaded.image_size}×"
            f"{loaded.image_size} pixels it keeps {loaded.kept}, latents of {shape}. {stated}")  # fmt: skip


def _use(subject: Subject, format_name: str, sizes: str) -> Iterator[str]:
    kind = diffusers_class(subject.loaded) if format_name == "diffusers" else ""
    yield "## Use"
    yield f"```python\n{_LOADED[format_name].format(kind=kind)}\n```"
    yield (f"`images` are float32 (N, 3, H, W), RGB from -1 to 1, of {sizes}; so are `pictures`."
           + (" Latents are the means of the posterior." if _has_posterior(subject) and not kind else ""))  # fmt: skip
    if subject.scaling is None:
        yield "How latents are to be scaled for a diffusion model was not measured."
        return
    found = subject.statistics
    origin = (
        f"measured on {count_of(found.images, 'image')}"
        if found is not None and subject.loaded.latent_scaling.is_identity
        else "as the model came with it"
    )
    yield (f"A diffusion model is to be trained on (latents - shift) * factor, which has a variance of about one: "
           f"{_scaling_words(subject.scaling)}, {origin}.")  # fmt: skip
    if kind and found is not None:
        told = "may go beyond" if found.overflows_half else "stay within"
        yield (f"`force_upcast` is {str(found.overflows_half).lower()}: the largest activation seen was "
               f"{found.largest_activation:.3g}, so that activations {told} float16's 65,504.")  # fmt: skip
    elif kind:
        why = "since activations were not measured" if subject.needs_upcast else "as the model came with it"
        yield f"`force_upcast` is {str(subject.needs_upcast).lower()}, {why}."


def _scaling_words(scaling: LatentScaling) -> str:
    values = scaling.to_json()
    return f"factor {_value(values['factor'])}, shift {_value(values['shift'])}"


def _training(subject: Subject) -> Iterator[str]:
    run = subject.loaded.located.run
    if run is None:
        yield "## Training\n\nThe weights came without a run of aecli's, so data and recipe are unknown here."
        return
    recorded = run.read_config()
    options, split = recorded["options"], recorded.get("split") or {}
    validated_on = options["val_data"] if options["val_data"] is not None else None
    yield f"## Data\n\nTrained on {_source(options['data'], split.get('train'), recorded['data'])}; " + (
        f"validated on {_source(validated_on, split.get('val'), recorded.get('val_data') or {})}."
        if validated_on is not None
        else f"validated on {count_of(split.get('val') or 0, 'other image')} of it."
    )
    rows = [*_options(options), *((f"`-o {name}`", value) for name, value in recorded["model"]["options"].items())]
    yield "## Recipe\n\n" + _table(("option", "value"), [(name, _value(value)) for name, value in rows])
    document = checkpoints.read_document(subject.loaded.located.checkpoint) or {}
    metrics = document.get("metrics")
    if isinstance(metrics, dict):
        numbers = [(title, f"{metrics[key]:.4g}") for key, title in _NUMBERS.items() if is_number(metrics.get(key))]
        yield (f"## Numbers\n\nOf the weights after epoch {document.get('epoch')}, on the validation images:\n\n"
               + _table(("", "value"), numbers))  # fmt: skip


def _source(source: Any, count: Any, record: Mapping[str, Any]) -> str:
    """Return a source's name, of a path the last part alone, and how many images it has."""
    text = str(source)
    name = single_line(text if text.startswith(_NAMED) else Path(text).name or "images")
    images = count if isinstance(count, int) else record.get("images")
    return f"`{name}`, {count_of(images, 'image')}" if isinstance(images, int) else f"`{name}`, a stream"


def _options(recorded: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the flags and values of a run's data and recipe that are not the defaults, or that matter anyway."""
    for each in train_options():
        value = recorded.get(each.name)
        if each.option.panel not in (DATA, RECIPE) or each.option.completes or each.name in _LEFT_OUT:
            continue
        if each.name in _ALWAYS or value != each.default:
            yield f"`{each.flag}`", value
    if recorded.get("init"):
        yield "`--init`", Path(str(recorded["init"])).name


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_value, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else single_line(str(value))


def _table(headings: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {' | '.join(headings)} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join(lines)


def _has_posterior(subject: Subject) -> bool:
    model = subject.loaded.model
    return isinstance(model, GaussianAutoencoder) or getattr(model.options, "bottleneck", "") == "kl"
