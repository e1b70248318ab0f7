"""aecli for Python: models that take pictures and give pictures, evaluation and training as plain calls."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from aecli.configs import EvalConfig, SampleConfig, TrainConfig
from aecli.data.decoding.decode import decode_fitted, fit
from aecli.data.image_ref import ImageRef
from aecli.errors import ConfigError, DataError
from aecli.evaluation.paired import EvalReport
from aecli.evaluation.paired import evaluate as run_evaluation
from aecli.inference.loaded_model import LoadedModel, load_model
from aecli.progress import ignore
from aecli.sampling.prior_choice import choose_prior
from aecli.sampling.sample import SAMPLE_BATCH, draw_samples
from aecli.training.events import TrainReport
from aecli.training.loop import train as run_training

Kind = Literal["pil", "array", "tensor"]
Pictures = Image.Image | Sequence[Image.Image] | NDArray[np.uint8] | Tensor

_ACCEPTED = (
    "expected a PIL image or a list of them, an array uint8 (H, W, 3) or (N, H, W, 3), "
    "or a floating-point tensor (3, H, W) or (N, 3, H, W) in [-1, 1]"
)


class Model:
    """A trained model. Made by `load`.

    Images go in as one of three kinds:

    - `"pil"`: a PIL image or a list of them, of any size and mode;
    - `"array"`: uint8 (H, W, 3) or (N, H, W, 3), RGB, of any size;
    - `"tensor"`: floating point (3, H, W) or (N, 3, H, W), RGB in [-1, 1], sides as the model takes them.

    PIL images and arrays are brought to the model's `image_size` as in training; tensors are taken as they are.
    Whatever comes in, latents and results lie on the CPU, and the first axis is N, also for a single image.
    """

    def __init__(self, loaded: LoadedModel, named: str, runs: Path) -> None:
        """Take a loaded model; `load` makes one."""
        self._loaded, self._named, self._runs = loaded, named, runs

    @property
    def name(self) -> str:
        """Its class's name."""
        return self._loaded.title

    @property
    def image_size(self) -> int:
        """Side, in pixels, of the images that it was trained on."""
        return self._loaded.image_size

    @property
    def options(self) -> Any:
        """Its options: a frozen dataclass of its class's own."""
        return self._loaded.model.options

    @property
    def module(self) -> torch.nn.Module:
        """The PyTorch module itself, in `eval()` mode, on its device."""
        return self._loaded.model

    def __repr__(self) -> str:
        return f"<aecli {self.name} of {self.image_size}² from {self._loaded.located.checkpoint}>"

    def encode(self, images: Pictures) -> Tensor:
        """Return latents float32 (N, …), of a VAE the posterior's means.

        Raises:
            DataError: what is given is none of the kinds of images.
        """
        batches = self._batches(images, _kind_of(images))
        return torch.cat([torch.from_numpy(self._loaded.latents(batch)[0]) for batch in batches])

    def decode(self, latents: Tensor | NDArray[np.floating[Any]], output: Kind = "pil") -> Any:
        """Return the images of latents (N, …): a list of PIL images, uint8 (N, H, W, 3) or float32 (N, 3, H, W).

        A tensor holds the decoder's own numbers, in [-1, 1]; the other kinds are rounded to 8 bits.

        Raises:
            ConfigError: an `output` that is not "pil", "array" or "tensor".
            DataError: latents that this model can't decode.
            ModelError: it makes no finite numbers of them.
        """
        _require_kind(output)
        codes = torch.as_tensor(latents, dtype=torch.float32)
        channels = self._loaded.model.latent_shape(self.image_size)
        if codes.ndim != 1 + len(channels) or codes.shape[1] != channels[0] or len(codes) == 0:
            expected = ", ".join(["N", *map(str, channels)])
            raise DataError(f"latents of shape {tuple(codes.shape)}: expected ({expected}), or another size of image")
        return _joined([self._loaded.decode_all(codes, exact=output == "tensor")], output)

    def reconstruct(self, images: Pictures) -> Any:
        """Return reconstructions, of the kind that came in: a list of PIL images, uint8 (N, H, W, 3) or float32.

        PIL images and arrays come back as `aecli reconstruct` writes them, tensors as the decoder's own numbers.

        Raises:
            DataError: what is given is none of the kinds of images.
        """
        kind = _kind_of(images)
        results = [self._loaded.forward(batch, exact=kind == "tensor") for batch in self._batches(images, kind)]
        return _joined(results, kind)

    def sample(
        self,
        n: int = 1,
        seed: int = 0,
        temperature: float = 1.0,
        output: Kind = "pil",
        prior: str = "auto",
        steps: int | None = None,
    ) -> Any:
        """Return `n` new images, as `aecli sample` draws them: image i depends on (seed, i) alone.

        `prior` is "auto", "normal", "gaussian", "mixture" or "flow", the last in so many `steps`; the fitted ones are
        fitted on first use, to the images of the model's run.

        Raises:
            ConfigError: an `n`, seed, temperature, prior or output that can't be meant.
            ModelError: "normal" for a model that was never trained towards N(0, I) (an AE).
            CheckpointError, DataError: a prior that isn't there, and can't be fitted.
        """
        _require_kind(output)
        config = SampleConfig(self._named, prior=prior, n=n, steps=steps, seed=seed, temperature=temperature,
                              runs=self._runs)  # fmt: skip
        chosen = choose_prior(self._loaded, config.prior, ignore, runs=config.runs, temperature=config.temperature,
                              seed=config.seed, steps=config.steps)  # fmt: skip
        starts = range(0, n, SAMPLE_BATCH)
        batches = [range(start, min(start + SAMPLE_BATCH, n)) for start in starts]
        return _joined(
            [draw_samples(self._loaded, chosen, batch, exact=output == "tensor") for batch in batches], output
        )

    def _batches(self, images: Pictures, kind: Kind) -> Iterator[Tensor]:
        """Yield float32 (N, 3, H, W) in [-1, 1], of the size that `aecli reconstruct` takes at once."""
        if kind == "tensor":
            assert isinstance(images, Tensor)  # for the type checker: that is what makes the kind
            whole = images[None] if images.ndim == 3 else images
            multiple = self._loaded.model.size_multiple
            if whole.ndim != 4 or whole.shape[1] != 3 or not whole.is_floating_point() or whole.numel() == 0:
                raise DataError(f"a tensor {whole.dtype} {tuple(images.shape)}: {_ACCEPTED}")
            if whole.shape[2] % multiple or whole.shape[3] % multiple:
                raise DataError(f"a tensor {tuple(images.shape)}: expected sides that are multiples of {multiple}")
            yield from torch.split(whole.float(), self._loaded.device_batch_size(SAMPLE_BATCH))
            return
        pictures: Any = images
        if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3):
            pictures = [images]
        size = self._loaded.device_batch_size(SAMPLE_BATCH)
        for start in range(0, len(pictures), size):
            fitted = [self._fitted(picture) for picture in pictures[start : start + size]]
            yield self._loaded.batch(np.stack(fitted).transpose(0, 3, 1, 2))

    def _fitted(self, picture: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
        """uint8 (S, S, 3) of a picture; of a PIL image as if out of a file, with its alpha, 16 bits and EXIF."""
        if isinstance(picture, Image.Image):
            image = ImageRef("a PIL image", "", "", lambda: picture)
            return decode_fitted(image, self.image_size, self._loaded.fit)
        return fit(picture, self.image_size, self._loaded.fit)


def load(model: str | Path, *, runs: str | Path = "runs", device: str = "auto", precision: str = "auto") -> Model:
    """Load a model: a registry name (its newest run under `runs`), a run folder, or a `.safetensors` file.

    Raises:
        CheckpointError, ModelError: it can't be found, read or built.
        ConfigError: the device or precision is not to be had.
    """
    return Model(load_model(str(model), Path(runs), device, precision), str(model), Path(runs))


def evaluate(
    gt: str | Path | EvalConfig, pred: str | Path | Sequence[str | Path] | Mapping[str, str | Path] = (), **options: Any
) -> EvalReport:
    """Compare predictions with their ground truth: `evaluate("truth", {"ae": "a", "vae": "b"}, metrics=("psnr",))`.

    Args:
        gt: a SOURCE of images (folder, zip, …), or a whole EvalConfig.
        pred: a SOURCE, several of them, or names and their SOURCEs.
        options: the other fields of EvalConfig.

    Raises:
        AecliError: one of its kinds, as `aecli.evaluation.paired.evaluate`.
    """
    if isinstance(gt, EvalConfig):
        return run_evaluation(replace(gt, **options))
    if isinstance(pred, Mapping):
        specs = [f"{name}={source}" for name, source in pred.items()]
    else:
        specs = [str(each) for each in ([pred] if isinstance(pred, str | Path) else pred)]
    return run_evaluation(EvalConfig(gt=str(gt), pred=tuple(specs), **options))


def train(config: TrainConfig) -> Iterator[TrainReport]:
    """Train as `config` says, yielding reports as it goes: Started, StepReport, EpochReport, …, Finished.

    Raises:
        AecliError: one of its kinds, as `aecli.training.loop.train`.
    """
    return run_training(config)


def _kind_of(images: object) -> Kind:
    """Which kind of images it is; DataError where it is none."""
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


def _require_kind(output: str) -> None:
    if output not in ("pil", "array", "tensor"):
        raise ConfigError(f"output={output!r}: expected one of pil, array, tensor")


def _joined(batches: Sequence[Tensor], output: Kind) -> Any:
    """Batches (N, 3, H, W), uint8 or, for tensors, float32, as one of the kinds."""
    whole = torch.cat(list(batches))
    if output == "tensor":
        return whole
    array = whole.permute(0, 2, 3, 1).contiguous().numpy()
    return array if output == "array" else [Image.fromarray(pixels) for pixels in array]
