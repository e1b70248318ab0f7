"""`.npy` files of unknown origin: numbers of bounded size, and no pickle."""

import math
import tokenize
import warnings
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from aecli.storage.strict_json import file_size, regular_file

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_KINDS = "fiu"  # of dtypes: numbers


def read_npy(path: Path) -> NDArray[np.float32]:
    """Return the array of a file as float32.

    Raises:
        OSError: it can't be read, or is not a regular file.
        ValueError: it is no .npy file, is longer or shorter than its header says, or holds something else than numbers.
    """
    with regular_file(path) as file:
        version = npy.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"unsupported version {version}")
        try:
            with warnings.catch_warnings(action="ignore"):  # of a header written by Python 2
                shape, is_transposed, dtype = _HEADERS[version](file)
        except (tokenize.TokenError, RecursionError) as error:
            raise ValueError("damaged header") from error
        if dtype.kind not in _KINDS:
            raise ValueError(f"unsupported dtype {dtype}")
        size = math.prod(shape) * dtype.itemsize
        if file_size(file) - file.tell() != size:
            raise ValueError(f"{file_size(file) - file.tell()} bytes of numbers, where its header asks for {size}")
        values = np.frombuffer(file.read(size), dtype)
        if values.nbytes != size:
            raise ValueError("it changed while it was read")
        return values.reshape(shape, order="F" if is_transposed else "C").astype(np.float32, order="C")
