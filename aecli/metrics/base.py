"""What all metrics share: their description, how they are loaded, and the check of their inputs.

Images are NumPy arrays or PyTorch tensors. What needs no network, and LPIPS by default, is computed by NumPy on a CPU,
without importing PyTorch, which takes longer than measuring a hundred images; on a CUDA device by PyTorch.
"""

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec

import numpy as np
from numpy.typing import NDArray

from aecli.configs import EvalConfig
from aecli.progress import Listener

P = ParamSpec("P")

EIGHT_BITS, SIXTEEN_BITS = 255.0, 65535.0  # the highest value of a sample

Images = Any  # an array or a tensor (N, 3, H, W)
Values = Any  # (N,) float64 on the CPU: an array, or of tensors a tensor
Score = Callable[[Images], Values]  # of predictions


@dataclass(frozen=True)
class LoadedMetric:
    """A metric ready to run on a device.

    `against` takes references uint8 (N, 3, H, W) and returns the function that scores predictions of the same shape:
    what depends on the references alone is computed once, however many predictions follow. One that `takes_deep` also
    measures values of more than 8 bits, uint16 or floats, from 0 to the data range of its options. `versions` identify
    the weights in use.
    """

    against: Callable[[Images], Score]
    versions: Mapping[str, str] = field(default_factory=dict)
    takes_deep: bool = False


class Described:
    """The name of a metric, the shortest side of an image that it takes, and how its values are headed and shown."""

    name: str
    higher_is_better: bool
    min_side: int
    digits: int

    @property
    def title(self) -> str:
        """The heading of its column, with an arrow to the better side."""
        return f"{self.name.upper()} {'↑' if self.higher_is_better else '↓'}"

    def format(self, value: float) -> str:
        """Format a value."""
        return "∞" if math.isinf(value) else f"{value:.{self.digits}f}"

    def format_difference(self, value: float | None) -> str:
        """Format a difference of two values, with its sign; a dash for None."""
        return "–" if value is None else f"{value:+.{self.digits}f}"

    def format_interval(self, interval: tuple[float, float] | None) -> str:
        """Format an interval; empty for None."""
        return "" if interval is None else f"[{interval[0]:.{self.digits}f}, {interval[1]:.{self.digits}f}]"


@dataclass(frozen=True)
class Metric(Described):
    """Name, exact definition and formatting of a metric, and how to load it.

    Attributes:
        min_side: the shortest image side, in pixels, that it is defined for.
        load: makes it ready on a device, such as `cuda:1`; may raise WeightsError.
        pool: one value from the values (N,) of all images together, where the metric has such a value; the metric is
            then infinite for identical images.
        digits: decimals shown.
        has_network: whether it is computed by a network, and so by PyTorch, on an accelerator where there is one.
        takes_arrays: whether on a CPU it does without PyTorch.
    """

    name: str
    unit: str
    higher_is_better: bool
    min_side: int
    definition: str
    load: Callable[[str, Listener], LoadedMetric]
    pool: Callable[[NDArray[np.float64]], float | None] | None = None
    digits: int = 4
    has_network: bool = False
    takes_arrays: bool = True


def load_pairwise(function: Callable[[Images, Images], Values]) -> Callable[[str, Listener], LoadedMetric]:
    """Return the `load` of a metric that is a pure function of references and predictions."""
    return lambda device, listen: LoadedMetric(lambda references: partial(function, references), takes_deep=True)


def namespace(values: Any) -> Any:
    """Return the module whose functions take `values`, NumPy or PyTorch; those used here are in both."""
    return np if isinstance(values, np.ndarray | np.generic) else sys.modules["torch"]


def computed_on_arrays(
    function: Callable[Concatenate[Images, Images, P], NDArray[np.float64]],
) -> Callable[Concatenate[Images, Images, P], Values]:
    """Make a metric of arrays one of tensors too, to which it returns a tensor.

    Tensors become arrays of the same memory; those on a CUDA device stay there, and those of MPS, which has no float64,
    come to the CPU.
    """

    @wraps(function)
    def compute(a: Images, b: Images, /, *arguments: P.args, **options: P.kwargs) -> Values:
        if isinstance(a, np.ndarray):
            return function(a, b, *arguments, **options)
        torch = sys.modules["torch"]
        wide = (each.float() if each.dtype == torch.bfloat16 else each for each in (a, b))  # NumPy has no bfloat16
        a, b = (each if each.device.type == "cuda" else each.cpu().numpy() for each in wide)
        return torch.from_numpy(function(a, b, *arguments, **options))

    return compute


def is_8_bits(images: Images) -> bool:
    """Whether images are uint8."""
    return str(images.dtype).removeprefix("torch.") == "uint8"


def check_images(images: Images, min_side: int, deep: bool = False) -> None:
    """Raise ValueError unless images are uint8 (N, 3, H, W), N at least 1, H and W at least `min_side`.

    With `deep`, values of more bits are right too: uint16 or floats.
    """
    kind = str(images.dtype).removeprefix("torch.")
    has_type = kind == "uint8" or (deep and (kind == "uint16" or "float" in kind))
    if not has_type or images.ndim != 4 or images.shape[1] != 3 or len(images) == 0:
        raise ValueError(f"expected uint8 (N, 3, H, W), not {images.dtype} {tuple(images.shape)}")
    height, width = images.shape[-2:]
    if min(height, width) < min_side:
        raise ValueError(f"images of {width}x{height} are too small: this metric needs {min_side} pixels a side")


def check_pairs(a: Images, b: Images, min_side: int) -> None:
    """Raise ValueError unless two batches, of 8 bits or more, can be compared image by image; see `check_images`."""
    check_images(a, min_side, deep=True)
    check_images(b, min_side, deep=True)
    if a.shape != b.shape:
        raise ValueError(f"expected pairs of one shape, not {tuple(a.shape)} and {tuple(b.shape)}")


def to_scale(images: Any, data_range: float) -> Any:
    """Values from 0 to 255 as float64, not rounded: uint8 are that already, others are from 0 to `data_range`."""
    module = namespace(images)
    values = module.asarray(images, dtype=module.float64)
    return values if is_8_bits(images) else values * EIGHT_BITS / data_range


def deep_range(config: EvalConfig) -> float:
    """The highest value of images of more than 8 bits."""
    return SIXTEEN_BITS if config.data_range is None else float(config.data_range)
