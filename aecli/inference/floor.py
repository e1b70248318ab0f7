"""`aecli eval --floor`: the PCA of patches that keeps the same share of an image as a model does."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from aecli.data.batches import evenly_spaced, normalise
from aecli.data.image_ref import ImageRef, data_fingerprint
from aecli.errors import DataError, summarize
from aecli.inference.image_batches import decoded_batches
from aecli.inference.loaded_model import LoadedModel
from aecli.models.base import Autoencoder
from aecli.models.options import PatchOptions
from aecli.models.pca import PCA
from aecli.progress import Listener, Notice
from aecli.runs.images import run_images
from aecli.runtime.distributed import Distributed

_SIDES = (16, 8, 4, 2, 32)  # of patches, by preference; a covariance of 3·32² numbers takes seconds
_MOST_PIXELS = 2**27  # fitted to: 2,048 images of 256², 32,768 of 64²
_BATCH = 64
_HINT = "put them back, or leave out --floor"


@dataclass(frozen=True)
class Floor:
    """What a floor depends on: two models of which this is the same have one floor.

    `images` are what it is fitted to, read in squares of `image_size` by `fit` over `background`.
    """

    options: PatchOptions
    fingerprint: str
    image_size: int
    fit: str
    background: str


def floor_options(model: Autoencoder, image_size: int) -> PatchOptions | None:
    """Return the options of the PCA that keeps as many numbers of an image as a model, or None where there is none.

    Its patches are the model's own unless these have a side above 16.
    """
    shape = model.latent_shape(image_size)
    is_grid = len(shape) == 3 and shape[1] == shape[2] and image_size % shape[2] == 0
    own = [image_size // shape[2]] if is_grid and 2 <= image_size // shape[2] <= _SIDES[0] else []
    for side in (*own, *_SIDES):
        latent_dim, rest = divmod(prod(shape) * side**2, image_size**2)
        if image_size % side == 0 and not rest and 1 <= latent_dim <= 3 * side**2:
            return PatchOptions(side, latent_dim)
    return None


def find_floor(name: str, loaded: LoadedModel, listen: Listener) -> tuple[Floor, list[ImageRef]] | None:
    """Return the floor of a model and the images to fit it to, or None, which is told, where there is none.

    Raises:
        DataError: the images that the model was trained on are unknown or gone.
    """
    if loaded.model.closed_form:
        return None
    square = loaded.of_one_size("")
    options = floor_options(loaded.model, square.image_size) if loaded.model.bits_per_latent is None else None
    if options is None:
        listen(Notice(f"--floor: {name} has none, because it keeps {loaded.kept}, as no PCA does"))
        return None
    run = loaded.located.run
    if run is None:
        raise DataError(f"--floor: {loaded.located.checkpoint} is in no run folder, so its training images are unknown"
                        "\nhint: name its run folder, or leave out --floor")  # fmt: skip
    images = run_images(run, "train", hint=_HINT)
    floor = Floor(options, data_fingerprint(images), square.image_size, square.fit, square.background)
    return floor, images


def fit_floor(
    floor: Floor, images: Sequence[ImageRef], loaded: LoadedModel, distributed: Distributed, listen: Listener
) -> LoadedModel:
    """Fit a floor to training images, in the main process, and return it in the place of the model `loaded`.

    Raises:
        DataError: none of the images can be read.
    """
    model = PCA(floor.options)
    if distributed.is_main_process:
        square = loaded.of_one_size("")
        most = max(1, _MOST_PIXELS // floor.image_size**2)
        chosen = [images[index] for index in evenly_spaced(len(images), most)]
        model.prepare(_batches(square, chosen, listen))
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    fitted = distributed.broadcast_object(tensors)
    model.load_state_dict({name: torch.from_numpy(values) for name, values in fitted.items()})
    placement = replace(loaded.placement, precision="fp32")
    placed = model.eval().to(placement.device).to(memory_format=placement.memory_format)
    return replace(loaded, model=placed, name="pca", placement=placement)


def _batches(loaded: LoadedModel, images: Sequence[ImageRef], listen: Listener) -> Iterator[Tensor]:
    """Yield images float32 (N, 3, S, S) in [-1, 1] on the CPU; unreadable ones are left out with a notice."""
    unreadable: dict[str, str] = {}
    for pixels in decoded_batches(loaded, images, _BATCH, "fitting the floor", listen, unreadable):
        yield normalise(torch.from_numpy(pixels))
    if len(unreadable) == len(images):
        raise DataError(f"--floor: none of the {len(images):,} training images can be read: {summarize(unreadable)}")
    if unreadable:
        listen(Notice(f"--floor: left out {len(unreadable)} of {len(images):,} unreadable training images: "
                      f"{summarize(unreadable)}"))  # fmt: skip
