"""A training step of the model `resnet` as aecli takes it on a CPU against the same network written plainly.

    python -m tests.benchmarks.resnet [--widths 64,128,256 --image-size 64 --batch-size 16 --repeats 15] [--json]

The plain way: float32, NCHW, DataLoader and AdamW. Both take one thread and are measured in CPU time, in turns; figures
are medians, and the spread that of the ratios of single turns. The peak is measured by the clock: on a loaded machine
it comes out too low.
"""

import copy
import time
from collections.abc import Callable
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from aecli.models import registry
from aecli.models.base import Autoencoder
from aecli.models.flops import TRAINING_FACTOR, forward_flops
from aecli.runtime.memory import keep_freed_memory
from tests.benchmarks.common import Row, arguments, interleave, matmul_peak, show


def main() -> None:
    """Measure and print."""
    options = arguments(
        __doc__ or "",
        widths=("64,128,256", "of the model, one row each"),
        image_size=(64, "side of the images"),
        batch_size=(16, "images a step"),
        repeats=(15, "turns"),
    )
    torch.set_num_threads(1)
    keep_freed_memory()
    peak = matmul_peak("fp32", side=2048)
    rows, notes = [], {}
    for width in map(int, options.widths.split(",")):
        model, images = prepared(width, options.batch_size, options.image_size)
        ways = [timed(plain_step(copy.deepcopy(model), images)), timed(our_step(model, images))]
        interleave(ways, 1)  # not counted
        plain, ours = interleave(ways, options.repeats)
        ratios = sorted(one / other for one, other in zip(plain, ours, strict=True))
        flops = TRAINING_FACTOR * forward_flops(model, options.image_size)
        rates = [options.batch_size / median(seconds) for seconds in (ours, plain)]
        limit_is = f"{flops / 1e9:.3g} GFLOP an image at the fp32 matmul peak of {peak / 1e9:.3g} GFLOP/s"
        rows.append(Row(f"width {width}", "images/s", *rates, rates[0] / rates[1], peak / flops, limit_is))
        notes[f"ratios at width {width}"] = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    title = f"a step of resnet, {options.image_size}², batches of {options.batch_size}, one thread, CPU time"
    show(title, rows, options.json, **notes)


def prepared(width: int, batch_size: int, image_size: int) -> tuple[Autoencoder, Tensor]:
    """Return a model whose last kernels are no longer zero, and images."""
    torch.manual_seed(0)
    model = registry.build("resnet", registry.resolve_options("resnet", {"width": width})).train()
    for parameter in model.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))
    return model, torch.rand(batch_size, 3, image_size, image_size) * 2 - 1


def our_step(model: Autoencoder, images: Tensor) -> Callable[[], None]:
    """As aecli trains: channels_last, fused AdamW."""
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batch = images.contiguous(memory_format=torch.channels_last)
    return lambda: step(model, batch, optimizer)


def plain_step(model: Autoencoder, images: Tensor) -> Callable[[], None]:
    """The same network in the default memory format, on batches of a DataLoader."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    loader = DataLoader(TensorDataset(images), batch_size=len(images), shuffle=True)

    def take() -> None:
        for (batch,) in loader:
            step(model, batch, optimizer)

    return take


def step(model: Autoencoder, batch: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Take one step on the L1 distance."""
    optimizer.zero_grad()
    F.l1_loss(model(batch), batch).backward()
    optimizer.step()


def timed(action: Callable[[], None]) -> Callable[[], float]:
    """Return what takes the CPU seconds of an action."""

    def seconds() -> float:
        start = time.process_time()
        action()
        return time.process_time() - start

    return seconds


if __name__ == "__main__":
    main()
