"""A trained model, loaded and on its device: images to latents, latents to images."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from aecli.data.batches import normalise, quantise
from aecli.errors import ModelError
from aecli.models.base import Autoencoder
from aecli.runs import checkpoints
from aecli.runs.folder import Located, locate
from aecli.runtime.device import Placement, oom_as_device_error, place

MEMORY_HINT = "--precision bf16, or --device cpu"
# On a CPU a worker reconstructs no more pixels at once: a fixed share, because the last bits of a number depend on what
# else is in the batch, and that must not depend on how many workers there are.
WORKER_PIXELS = 2**18
_DECODED_AT_ONCE = 16  # latents


@dataclass(frozen=True)
class LoadedModel:
    """A trained model on its device, with what its checkpoint says of the images that it was trained on."""

    model: Autoencoder
    located: Located
    placement: Placement
    image_size: int
    fit: str
    name: str  # as the registry has it

    @cached_property
    def sha256(self) -> str:
        """That of its file, which tells priors of these weights from those of others; asked for once, and kept."""
        return checkpoints.fingerprint(self.located.checkpoint)

    @property
    def title(self) -> str:
        """Its class's name, as pictures and tables show it."""
        return type(self.model).__name__

    def reconstruct(self, images: np.ndarray, hint: str = MEMORY_HINT) -> np.ndarray:
        """Return reconstructions of uint8 (N, 3, H, W), sides padded to what the model takes and cut back."""
        height, width = images.shape[-2:]
        multiple = self.model.size_multiple
        padding = ((0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple))
        batch = self.batch(np.pad(images, padding, mode="edge"))
        return self.forward(batch, hint=hint)[:, :, :height, :width].numpy()

    def batch(self, images: np.ndarray) -> torch.Tensor:
        """Return uint8 (N, 3, H, W) as float32 in [-1, 1] on the device; what crosses the bus is bytes."""
        return normalise(torch.from_numpy(images).to(self.placement.device))

    def forward(self, batch: torch.Tensor, exact: bool = False, hint: str = MEMORY_HINT) -> torch.Tensor:
        """Return reconstructions of float32 (N, 3, H, W) in [-1, 1]: uint8, or `exact` floats like them, on the CPU."""
        with torch.inference_mode(), self.placement.autocast(), oom_as_device_error(hint):
            return self._pictures(self.model(self._placed(batch)), exact)

    def latents(self, batch: torch.Tensor, hint: str = MEMORY_HINT) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the latents float32 (N, …) of such a batch and, where the model has a posterior, log variances."""
        with torch.inference_mode(), self.placement.autocast(), oom_as_device_error(hint):
            latents, log_variances = self.model.encode_distribution(self._placed(batch))
        return latents.float().cpu().numpy(), None if log_variances is None else log_variances.float().cpu().numpy()

    def decode(self, latents: torch.Tensor, exact: bool = False) -> torch.Tensor:
        """Return images (N, 3, H, W) of latents (N, …): uint8, or `exact` float32 in [-1, 1], on the CPU."""
        with torch.inference_mode(), self.placement.autocast(), oom_as_device_error(MEMORY_HINT):
            return self._pictures(self.model.decode(latents.to(self.placement.device)), exact)

    def decode_all(self, latents: torch.Tensor, exact: bool = False) -> torch.Tensor:
        """Return the images of any number of latents, as `decode` does, a batch at a time."""
        parts = torch.split(latents, self.at_once(_DECODED_AT_ONCE))
        return torch.cat([self.decode(part, exact) for part in parts])

    def at_once(self, batch_size: int) -> int:
        """How many images of `image_size` a worker takes at once, of a batch of that size."""
        if self.placement.device.type != "cpu":
            return batch_size
        return min(batch_size, max(1, WORKER_PIXELS // self.image_size**2))

    def _placed(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.to(self.placement.device).contiguous(memory_format=self.placement.memory_format)

    def _pictures(self, output: torch.Tensor, exact: bool) -> torch.Tensor:
        if not bool(output.isfinite().all()):
            raise ModelError(f"{self.located.checkpoint} makes no pictures of finite numbers; try --precision fp32")
        return (output.float() if exact else quantise(output)).cpu()


def load_model(model: str, runs: Path, device: str = "auto", precision: str = "auto") -> LoadedModel:
    """Load what a MODEL argument means, ready to run.

    Raises:
        CheckpointError, ModelError: it can't be found, read or built.
        ConfigError: the device or precision is not to be had.
    """
    placement = place(device, precision)
    located = locate(model, runs)
    loaded, document = checkpoints.load_model(located.checkpoint, located.named)
    if not isinstance(loaded, Autoencoder):
        raise ModelError(
            f"{located.checkpoint} holds a prior ({document['model']}), which makes no pictures by itself\n"
            "name the autoencoder that it was trained for: aecli sample --model vae --prior flow"
        )
    on_device = loaded.to(placement.device).to(memory_format=placement.memory_format)
    return LoadedModel(on_device, located, placement, int(document["image_size"]), str(document["fit"]),
                       str(document["model"]))  # fmt: skip
