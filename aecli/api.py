"""The Python API: trained models applied to images in memory, evaluation and training."""

import math
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from aecli.configs import (
    DecodeConfig,
    EncodeConfig,
    EvalConfig,
    ExportConfig,
    ReconstructConfig,
    SampleConfig,
    TrainConfig,
)
from aecli.configs.given_images import named_images
from aecli.data.decoding.decode import fit
from aecli.data.image_ref import ImageRef
from aecli.errors import ConfigError, DataError
from aecli.evaluation.paired import EvalReport
from aecli.inference.export.export import ExportResult
from aecli.inference.export.export import export_model as run_export
from aecli.inference.latents.decode import DecodeResult
from aecli.inference.latents.decode import decode as run_decoding
from aecli.inference.latents.encode import EncodeResult
from aecli.inference.latents.encode import encode as run_encoding
from aecli.inference.loaded_model import LoadedModel, load_model
from aecli.inference.model_predictions import evaluate_models as run_evaluation
from aecli.models.latent_scaling import LatentScaling
from aecli.progress import Listener, Notice, Progress, ignore
from aecli.sampling.prior_choice import choose_prior
from aecli.sampling.sample import SAMPLE_BATCH, decode_samples, sample_batches
from aecli.training.events import TrainReport
from aecli.training.loop import train as run_training

Kind = Literal["pil", "array", "tensor"]
Images = Image.Image | Sequence[Image.Image] | NDArray[np.uint8] | Tensor

_ACCEPTED = (
    "expected a PIL image or a list of them, an array uint8 (H, W, 3) or (N, H, W, 3) from 0 to 255, "
    "or a floating-point tensor (3, H, W) or (N, 3, H, W) in [-1, 1]"
)


_ROUNDING = 1e-3  # by which a tensor may leave [-1, 1]: half precision rounds so


class Model:
    """A trained model. Made by `load`.

    Images are given as one of three kinds:

    - `"pil"`: a PIL image or a list of them, of any size and mode;
    - `"array"`: uint8 (H, W, 3) or (N, H, W, 3), RGB from 0 to 255, of any size;
    - `"tensor"`: floating point (3, H, W) or (N, 3, H, W), RGB in [-1, 1], sides multiples of the model's.

    Values outside these ranges are refused, and so are NaN and infinity, in latents too.

    PIL images and arrays are resized to the model's `image_size` as in training; tensors are used as they are. Latents
    and results are on the CPU, and their first axis is N, also for a single image.
    """

    def __init__(self, loaded: LoadedModel, named: str, runs: Path) -> None:
        """Wrap a loaded model; use `load` instead."""
        self._loaded, self._named, self._runs = loaded, named, runs

    @property
    def name(self) -> str:
        """Its class's name."""
        return self._loaded.title

    @property
    def image_size(self) -> int:
        """Side in pixels of its training images."""
        return self._loaded.image_size

    @property
    def latent_scaling(self) -> LatentScaling:
        """What its config says a diffusion model's latents are of the ones here: `apply` and `undo`."""
        return self._loaded.latent_scaling

    @property
    def options(self) -> Any:
        """Its options, an instance of its class's `Options` dataclass."""
        return self._loaded.model.options

    @property
    def module(self) -> torch.nn.Module:
        """The PyTorch module itself, in `eval()` mode, on its device."""
        return self._loaded.model

    def __repr__(self) -> str:
        return f"<aecli {self.name} of {self.image_size}² from {self._loaded.located.checkpoint}>"

    def encode(self, images: Images) -> Tensor:
        """Return latents float32 (N, …), for a VAE the posterior means, not scaled (see `latent_scaling`).

        Raises:
            DataError: images of another kind, shape or range.
        """
        batches = self._batches(images, _kind_of(images))
        return torch.cat([torch.from_numpy(self._loaded.latents(batch)[0]) for batch in batches])

    def decode(self, latents: Tensor | NDArray[np.floating[Any]], output: Kind = "pil") -> Any:
        """Return the images of latents (N, …): a list of PIL images, uint8 (N, H, W, 3) or float32 (N, 3, H, W).

        A tensor is the decoder's unrounded output in [-1, 1]; the other kinds are rounded to 8 bits.

        Raises:
            ConfigError: `output` is not "pil", "array" or "tensor".
            DataError: latents have another shape than the model's, or are not finite.
            ModelError: the decoder's output is not finite.
        """
        _require_kind(output)
        if not isinstance(latents, Tensor) and not (isinstance(latents, np.ndarray) and latents.dtype.kind in "fiu"):
            raise DataError(f"latents of type {type(latents).__name__}: expected a tensor or an array of numbers")
        tensor = torch.as_tensor(latents, dtype=torch.float32)
        shape = self._loaded.model.latent_shape(self.image_size)
        if tensor.ndim != 1 + len(shape) or tensor.shape[1] != shape[0] or len(tensor) == 0:
            expected = ", ".join(["N", *map(str, shape)])
            raise DataError(f"latents of shape {tuple(tensor.shape)}: expected ({expected}), or other sides")
        if not bool(tensor.isfinite().all()):
            raise DataError("latents: not all of them are finite")
        return _convert([self._loaded.decode_all(tensor, exact=output == "tensor")], output)

    def reconstruct(self, images: Images) -> Any:
        """Return reconstructions of the kind of `images`.

        PIL images and arrays equal the files of `aecli reconstruct`, also in that a model trained with `random-crop`
        takes them whole; tensors are the decoder's unrounded output.

        Raises:
            DataError: images of another kind, shape or range.
            ModelError: the decoder's output is not finite.
        """
        kind = _kind_of(images)
        if self._loaded.takes_whole and kind != "tensor":
            return self._reconstruct_whole(images, kind)
        results = [self._loaded.forward(batch, exact=kind == "tensor") for batch in self._batches(images, kind)]
        return _convert(results, kind)

    def sample(
        self,
        n: int = 1,
        seed: int = 0,
        temperature: float = 1.0,
        output: Kind = "pil",
        prior: str = "auto",
        steps: int | None = None,
        data: object = None,
        classes: Sequence[str] = (),
        guidance: float = 1.0,
    ) -> Any:
        """Return `n` new images, equal to those of `aecli sample`: image i depends only on (seed, i).

        `prior` is "auto", "normal", "gaussian", "mixture", "flow" (which samples in `steps` steps) or
        "autoregressive" (of a model with codes); gaussian and mixture are fitted on first use to the latents of the
        run's training images, or each time to those of `data`, which is given as TrainConfig takes it. A prior that was
        trained with `labels="folders"` draws of `classes` in turn; a `guidance` above 1 exaggerates what is particular
        to them, or without classes what a flow has learned beyond the Gaussian that it began as.

        Raises:
            ConfigError: an argument is out of range, or the prior learned no such class.
            ModelError: "normal" for a model that was not trained towards N(0, I) (an AE).
            CheckpointError, DataError: the prior doesn't exist and can't be fitted.
        """
        _require_kind(output)
        config = SampleConfig(self._named, prior=prior, data=data, n=n, steps=steps, seed=seed,  # type: ignore[arg-type]
                              temperature=temperature, runs=self._runs, classes=tuple(classes),
                              guidance=guidance)  # fmt: skip
        chosen = choose_prior(self._loaded, config, ignore)
        exact = output == "tensor"
        return _convert([decode_samples(self._loaded, chosen, each, exact) for each in sample_batches(n)], output)

    def _reconstruct_whole(self, images: Images, kind: Kind) -> Any:
        """Return the reconstructions of images of any sizes, one by one: PIL images, or an array (N, H, W, 3)."""
        pictures = [self._loaded.reconstruct(self._whole(image).transpose(2, 0, 1)[None]) for image in _listed(images)]
        if kind == "array":
            return np.concatenate(pictures).transpose(0, 2, 3, 1).copy()
        return [Image.fromarray(picture[0].transpose(1, 2, 0).copy()) for picture in pictures]

    def _batches(self, images: Images, kind: Kind) -> Iterator[Tensor]:
        """Yield float32 (N, 3, H, W) in [-1, 1], in the batches of `aecli reconstruct`."""
        size = self._loaded.device_batch_size(SAMPLE_BATCH)
        if kind == "tensor":
            assert isinstance(images, Tensor)  # for the type checker
            whole = images[None] if images.ndim == 3 else images
            multiple = self._loaded.model.size_multiple
            if whole.ndim != 4 or whole.shape[1] != 3 or not whole.is_floating_point() or whole.numel() == 0:
                hint = "\nhint: x / 127.5 - 1" if whole.dtype == torch.uint8 else ""
                raise DataError(f"a tensor {whole.dtype} {tuple(images.shape)}: {_ACCEPTED}{hint}")
            if whole.shape[2] % multiple or whole.shape[3] % multiple:
                raise DataError(f"a tensor {tuple(images.shape)}: expected sides that are multiples of {multiple}")
            _require_range(whole)
            yield from torch.split(whole.float(), size)
            return
        listed = _listed(images)
        for start in range(0, len(listed), size):
            fitted = [self._resize(image) for image in listed[start : start + size]]
            yield self._loaded.batch(np.stack(fitted).transpose(0, 3, 1, 2))

    def _whole(self, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return uint8 (H, W, 3) of a picture's own size."""
        if isinstance(image, Image.Image):
            return self._loaded.read_image(ImageRef("a PIL image", "", "", lambda: image)).pixels
        return image

    def _resize(self, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize to uint8 (S, S, 3); alpha, 16 bits and EXIF of a PIL image are handled as in files."""
        if isinstance(image, Image.Image):
            reference = ImageRef("a PIL image", "", "", lambda: image)
            return self._loaded.of_one_size("").read_image(reference).pixels
        return fit(image, self.image_size, self._loaded.of_one_size("").fit)


def load(
    model: str | Path,
    *,
    runs: str | Path = "runs",
    device: str = "auto",
    precision: str = "auto",
    image_size: int | None = None,
    fit: str | None = None,
) -> Model:
    """Load a model: a registry name (its newest run under `runs`), a run or diffusers folder, a `.safetensors` file.

    `image_size` (pixels) and `fit` ("squash" or "crop") replace those of its training; what is assumed of a file that
    says neither is told by a UserWarning.

    Raises:
        CheckpointError, ModelError: the model can't be found, read or built.
        ConfigError, DeviceError: an argument has another type or range, or the device isn't available.
    """
    given: dict[str, Any] = {
        "runs": runs,
        "device": device,
        "precision": precision,
        "image_size": image_size,
        "fit": fit,
    }
    checked = ReconstructConfig(model, **given)  # type: ignore[arg-type] # paths are taken as text
    loaded = load_model(checked.model, checked.runs, checked.device, checked.precision, _warn,
                        checked.image_size, checked.fit)  # fmt: skip
    return Model(loaded, checked.model, checked.runs)


def _warn(report: Progress | Notice) -> None:
    if isinstance(report, Notice):
        warnings.warn(report.text, stacklevel=4)


def evaluate(gt: object, pred: object = (), **options: Any) -> EvalReport:
    """Compare predictions with their ground truth: `evaluate("truth", {"ae": "a", "vae": "b"}, metrics=("psnr",))`.

    Images given in Python pair by their index: `evaluate(images, {"vae": model.reconstruct(images)})`.

    Args:
        gt: a SOURCE of images (folder, zip, …), images as `TrainConfig` takes them, or a whole EvalConfig.
        pred: a SOURCE or images, a list of these, or names and their SOURCEs or images.
        options: the other fields of EvalConfig.

    Raises:
        AecliError: images, weights or outputs can't be used.
    """
    if isinstance(gt, EvalConfig):
        return run_evaluation(replace(gt, **options))
    if isinstance(pred, Mapping):
        pred = [named_images("--pred", name, source) for name, source in pred.items()]
    specs = pred if isinstance(pred, list | tuple) else (pred,)
    return run_evaluation(EvalConfig(gt=gt, pred=tuple(specs), **options))  # type: ignore[arg-type] # it is checked


def encode_folder(
    model: str | Path, data: object = None, out: str | Path | None = None, *, listen: Listener = ignore, **options: Any
) -> EncodeResult:
    """Write the latents of a SOURCE to a folder, as `aecli encode` does; the same call goes on where it was stopped.

    `Model.encode` returns those of images in memory.

    Args:
        model: a registry name, a run folder, or a `.safetensors` file.
        data: a SOURCE, or images as `TrainConfig` takes them; None for those of the run.
        out: the folder; None for `latents/MODEL`.
        listen: is told of progress, and of what a user should know.
        options: the other fields of EncodeConfig.

    Raises:
        AecliError: a model, images or the folder can't be used.
    """
    return run_encoding(EncodeConfig(model, data, out=out, **options), listen)  # type: ignore[arg-type] # it is checked


def decode_folder(
    model: str | Path, latents: str | Path, out: str | Path | None = None, *, listen: Listener = ignore, **options: Any
) -> DecodeResult:
    """Write pictures of the latents in a folder or file, as `aecli decode` does; `Model.decode` returns them.

    Args:
        model: a registry name, a run folder, or a `.safetensors` file.
        latents: a folder in any of the layouts that `encode_folder` writes, or a `.safetensors` or `.npy` file.
        out: the folder; None for `decoded/MODEL`.
        listen: is told of progress, and of what a user should know.
        options: the other fields of DecodeConfig.

    Raises:
        AecliError: a model, latents or the folder can't be used.
    """
    return run_decoding(DecodeConfig(model, latents, out=out, **options), listen)  # type: ignore[arg-type]


def export_model(
    model: str | Path, out: str | Path, format: str, *, listen: Listener = ignore, **options: Any
) -> ExportResult:
    """Write a model in another program's format, with a model card, as `aecli export` does.

    Args:
        model: a registry name, a run or diffusers folder, or a `.safetensors` file.
        out: the folder.
        format: "diffusers" (of kl and vq), "onnx" or "torch".
        listen: is told of progress, and of what a user should know.
        options: the other fields of ExportConfig.

    Raises:
        AecliError: the model, the images or the folder can't be used, a package is missing, or an upload failed.
    """
    return run_export(ExportConfig(model, out, format, **options), listen)  # type: ignore[arg-type] # paths are taken as text


def train(config: TrainConfig) -> Generator[TrainReport, None, None]:
    """Train, yielding reports: Started, StepReport, EpochReport, …, Finished.

    The same call resumes an unfinished run, on a CPU bit for bit as if it had never stopped. It may stop anywhere:
    `break`, `close()`, an exception in the loop, an iterator that is dropped or is left when Python ends, Ctrl-C and a
    notebook's stop button save the run where it is. Ctrl-C lets the current step end, and raises KeyboardInterrupt when
    the run is saved; a second one raises it at once, without saving.

    After `kill -9`, or where a signal handler of yours raises an exception in the middle of a step, the same call goes
    on from the last checkpoint (`checkpoint_every`).

    Raises:
        AecliError: options, data, checkpoints or outputs can't be used, or a loss is not finite.
    """
    if not isinstance(config, TrainConfig):
        raise ConfigError(f"train({type(config).__name__}): expected a TrainConfig")
    return run_training(config)


def _require_range(tensor: Tensor) -> None:
    """Raise DataError for a tensor with values outside [-1, 1], but for rounding, or NaN."""
    low, high = (float(each) for each in tensor.aminmax())
    if not (low >= -1 - _ROUNDING and high <= 1 + _ROUNDING):  # false for NaN too
        if math.isnan(low):
            raise DataError("a tensor with NaN: expected values in [-1, 1]")
        raise DataError(
            f"a tensor with values from {low:g} to {high:g}: expected values in [-1, 1]\n"
            "hint: from 0 to 255: x / 127.5 - 1; from 0 to 1: x * 2 - 1; slightly outside: x.clamp(-1, 1)"
        )


def _kind_of(images: object) -> Kind:
    """Return the kind of `images`; raises DataError for anything else."""
    if isinstance(images, Tensor):
        return "tensor"
    if isinstance(images, np.ndarray):
        if images.dtype == np.uint8 and images.ndim in (3, 4) and images.shape[-1] == 3 and images.size:
            return "array"
        raise DataError(f"an array {images.dtype} {images.shape}: {_ACCEPTED}")
    listed = [images] if isinstance(images, Image.Image) else images
    if isinstance(listed, list | tuple) and listed and all(isinstance(each, Image.Image) for each in listed):
        return "pil"
    raise DataError(f"{type(images).__name__}: {_ACCEPTED}")


def _listed(images: Images) -> Any:
    """Return PIL images or arrays, of which there may be a single one, as a list or an array (N, H, W, 3)."""
    is_single = isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3)
    return [images] if is_single else images


def _require_kind(output: str) -> None:
    if output not in ("pil", "array", "tensor"):
        raise ConfigError(f"output={output!r}: expected one of pil, array, tensor")


def _convert(batches: Sequence[Tensor], output: Kind) -> Any:
    """Concatenate batches (N, 3, H, W), uint8 or float32, and convert them to the kind `output`."""
    whole = torch.cat(list(batches))
    if output == "tensor":
        return whole
    array = whole.permute(0, 2, 3, 1).contiguous().numpy()
    return array if output == "array" else [Image.fromarray(pixels) for pixels in array]
