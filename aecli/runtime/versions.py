"""Versions of what computes."""

import platform
import sys
from importlib.metadata import version

from aecli._version import __version__


def versions() -> dict[str, str]:
    """Return the versions that results depend on; PyTorch's without importing it."""
    torch = sys.modules.get("torch")
    return {
        "aecli": __version__,
        "python": platform.python_version(),
        "torch": version("torch") if torch is None else str(torch.__version__),
    }
