"""Matplotlib with the same defaults on every machine, and without messages."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from aecli.errors import OutputError

BLUE, ORANGE, INK, GREY = "#0072B2", "#D55E00", "#1a1a1a", "#8a8a8a"  # Okabe and Ito's, for the colour-blind


@contextmanager
def quiet_matplotlib() -> Iterator[None]:
    """Import matplotlib and draw the same picture on every machine, without messages on the terminal.

    Matplotlib warns about a home folder that is not writable (it then uses a temporary one, removed at exit) and about
    building its font cache. The user's matplotlibrc (LaTeX text, another resolution) is ignored.

    Raises:
        OutputError: matplotlib finds no writable folder for its cache.
    """
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        try:
            import matplotlib.style
        except OSError as error:
            raise OutputError(
                "matplotlib finds no writable folder for its cache\nhint: set MPLCONFIGDIR to one"
            ) from error
        with matplotlib.style.context("default"):
            yield
    finally:
        logger.setLevel(level)
