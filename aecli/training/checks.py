"""Checks of options, data and checkpoints against each other, before the first step."""

import json
from collections.abc import Mapping
from typing import Any

from torch import nn

from aecli.configs import TrainConfig
from aecli.configs.checks import RANDOM_CROP
from aecli.configs.train import ObjectiveConfig
from aecli.data.streams import is_stream
from aecli.errors import CheckpointError, ConfigError, DataError, DeviceError
from aecli.metrics.lpips_choice import MIN_SIDE as LPIPS_MIN_SIDE
from aecli.metrics.ssim import MIN_SIDE as SSIM_MIN_SIDE
from aecli.models.base import Autoencoder, Trainable
from aecli.models.receptive_field import grows_with_images
from aecli.runs.folder import RunFolder
from aecli.runtime.device import Placement
from aecli.runtime.distributed import Distributed
from aecli.training.discriminator import MIN_SIDE as DISCRIMINATOR_MIN_SIDE
from aecli.training.inputs.loaders import BatchLoader
from aecli.training.inputs.micro_batches import smallest_micro_batch
from aecli.training.state import TrainState
from aecli.training.state_schema import StateDocument


def validate_options(config: TrainConfig, model: Trainable, distributed: Distributed, placement: Placement) -> None:
    """Raise ConfigError or DeviceError where options contradict each other, the model or the number of processes."""
    multiple = model.size_multiple
    image_size, batch_size = config.data.image_size, config.optimization.batch_size
    if image_size % multiple:
        raise ConfigError(f"--image-size {image_size}: model {config.model.name!r} needs a multiple of {multiple}")
    is_stream_of_images = is_stream(config.data.source)
    if (
        model.closed_form
        and not is_stream_of_images
        and (config.optimization.steps is not None or config.optimization.epochs != 1)
    ):
        raise ConfigError(
            f"--epochs: model {config.model.name!r} is fitted in one pass over the images\n"
            f"hint: leave --epochs, --steps and --recipe out, or use --epochs 1"
        )
    if config.optimization.steps is None and is_stream_of_images:
        raise ConfigError(f"--steps: {config.data.source} is a stream, which has no end\nhint: set --steps")
    if batch_size < distributed.world_size:
        raise ConfigError(
            f"--batch-size {batch_size}: fewer images than the {distributed.world_size} processes\n"
            "hint: it counts the images of all processes together"
        )
    if config.optimization.train == "decoder" and config.model.init is None:
        raise ConfigError("--train decoder: the encoder would be a random one\nhint: name trained weights with --init")
    if config.optimization.sync_batchnorm == "on" and placement.device.type != "cuda":
        raise ConfigError(f"--sync-batchnorm on: not available on {placement.device.type}\nhint: use auto")
    if distributed.world_size > 1 and placement.device.type == "mps":
        raise DeviceError("--device mps: can't be shared by several processes\nhint: use --device cpu")


def validate_pieces(config: TrainConfig, model: Trainable) -> None:
    """Raise ConfigError where a model that is to be trained on pieces of pictures can't have images of other sizes.

    Its latent then doesn't grow with the image.
    """
    if config.data.fit != RANDOM_CROP:
        return
    name = config.model.name
    if not isinstance(model, Autoencoder):
        raise ConfigError(f"--fit {RANDOM_CROP}: {name} is trained on latents, which are no images")
    if not grows_with_images(model):
        raise ConfigError(
            f"--fit {RANDOM_CROP}: model {name!r} has latents of one shape for images of all sizes, so it can't "
            "be used on whole pictures\nhint: --fit crop"
        )


def validate_objective(config: TrainConfig, model: Trainable, perceptual_net: str | None) -> None:
    """Raise ConfigError where the images are too small for a loss or metric, or the model's examples are no images."""
    objective, size = config.objective, config.data.image_size
    if model.predicts_log_likelihoods and objective.pixel_loss != ObjectiveConfig.pixel_loss:
        raise ConfigError(f"--pixel-loss {objective.pixel_loss}: a prior over codes maximises their likelihood")
    needed = {
        "--perceptual-weight": LPIPS_MIN_SIDE[perceptual_net] if perceptual_net else 0,
        "--ssim-weight": SSIM_MIN_SIDE["gaussian"] if objective.ssim_weight else 0,
        "--adversarial-weight": DISCRIMINATOR_MIN_SIDE if objective.adversarial_weight else 0,
        "--best-by": {"loss": 0, "psnr": 1, "lpips": LPIPS_MIN_SIDE["alex"]}[config.optimization.best_by],
    }
    has_images = isinstance(model, Autoencoder)
    for flag, side in needed.items():
        if side and not has_images:
            raise ConfigError(f"{flag}: {config.model.name} is trained on latents, which are no images")
        if size < side:
            raise ConfigError(f"{flag}: needs images of {side} pixels a side, and --image-size is {size}")


def validate_best_by(config: TrainConfig, val_images: int) -> None:
    """Raise ConfigError where the best weights are chosen by a metric of validation images, and there are none."""
    best_by = config.optimization.best_by
    if best_by != "loss" and not val_images:
        raise ConfigError(f"--best-by {best_by}: there are no validation images\nhint: name some with --val-data")


def validate_same_state(distributed: Distributed, folder: RunFolder, state: StateDocument) -> None:
    """Raise CheckpointError where ranks read different states of the run: their folders are on different disks."""
    states = distributed.all_gather_object([vars(state.counters), state.rows[-1:]])
    if len({json.dumps(each) for each in states}) > 1:
        raise CheckpointError(f"{folder.last} is not the same on all machines\nhint: runs must lie on a shared disk")


def validate_same_data(distributed: Distributed, record: Mapping[str, Any]) -> None:
    """Raise DataError where ranks found different images."""
    for key in ("data", "val_data"):
        found = distributed.all_gather_object(
            [(record[key] or {}).get("fingerprint"), (record[key] or {}).get("images")]
        )
        if any(each != found[0] for each in found):
            counts = [count for _, count in found]
            raise DataError(f"the images of {record[key]['source']} are not the same on all machines (rank 0 has "
                            f"{counts[0]}, others {sorted(set(map(str, counts[1:])))})")  # fmt: skip


def validate_batch_statistics(
    model: Trainable, config: TrainConfig, distributed: Distributed, loader: BatchLoader
) -> None:
    """Raise ConfigError where batch normalisation would take the variance of a single value.

    That is a micro-batch of one image whose deepest feature maps are single pixels.
    """
    has_batch_norm = any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules())
    image_size, batch_size = config.data.image_size, config.optimization.batch_size
    if not has_batch_norm or image_size != model.size_multiple:
        return
    if loader.images == 1:
        raise DataError(
            f"--data {config.data.source}: a single image is left to train on, too few for batch normalisation at "
            f"--image-size {image_size}\nhint: add images, or --image-size {2 * image_size}"
        )
    for batch in (0, loader.batches - 1):
        count = loader.count(batch)
        if smallest_micro_batch(count, config, distributed.world_size) == 1:
            what = (
                f"the last batch of {loader.images} images would be one image"
                if count == 1
                else f"a batch of {count} would be split into micro-batches of one image"
            )
            raise ConfigError(
                f"--batch-size {batch_size}: {what}, too few for batch normalisation at --image-size {image_size}\n"
                f"hint: {_other_sizes(config, distributed, loader)}"
            )


def _other_sizes(config: TrainConfig, distributed: Distributed, loader: BatchLoader) -> str:
    """Return options that go through: the nearest batch size whose micro-batches have two images, or a larger side."""
    wanted, images = config.optimization.batch_size, loader.images
    larger = f"--image-size {2 * config.data.image_size}"
    for size in sorted(range(1, wanted + images + 1), key=lambda size: abs(size - wanted)):
        if size < max(distributed.world_size, config.optimization.grad_accum):
            continue
        other = config.replace(batch_size=size)
        counts = [size] if is_stream(config.data.source) else [min(size, images), (images - 1) % size + 1]
        if all(smallest_micro_batch(count, other, distributed.world_size) > 1 for count in counts):
            return f"--batch-size {size}, or {larger}"
    return larger


def validate_whole_epochs(
    config: TrainConfig, recorded: Mapping[str, Any] | None, state: TrainState, loader: BatchLoader
) -> None:
    """Raise CheckpointError where `--steps` grows after a run that ended in mid-epoch.

    Such a run has validated and stepped its scheduler there, which a run with more steps would not have done.
    """
    then = recorded["options"].get("steps") if recorded else None
    if then is not None and then != config.optimization.steps and state.counters.step >= then and then % loader.batches:
        raise CheckpointError(
            f"--steps {config.optimization.steps}: the run ended after {then} steps, in the middle of an epoch of "
            f"{loader.batches}, and can't grow\nhint: train another one with --out"
        )


def validate_log(kind: str | None) -> None:
    """Raise ConfigError, before any work, where the package that `--log` needs is not installed."""
    if kind is None:
        return
    try:
        import torch.utils.tensorboard.writer  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'--log {kind}: a package is missing\nhint: pip install "aecli[{kind}]"') from error
