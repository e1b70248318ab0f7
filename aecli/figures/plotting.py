"""Matplotlib, set up so that it draws the same everywhere and says nothing."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from aecli.errors import OutputError

BLUE, ORANGE, INK, GREY = "#0072B2", "#D55E00", "#1a1a1a", "#8a8a8a"  # Okabe and Ito's: told apart by colour-blind eyes


@contextmanager
def quiet_matplotlib() -> Iterator[None]:
    """Import matplotlib and draw the same picture on every machine, without a word on the terminal.

    It would warn of a home folder that can't be written (it then uses a temporary one, which it removes when the
    program ends) and of building its font cache. A user's own matplotlibrc (LaTeX text, another resolution) is set
    aside.
    """
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        try:
            import matplotlib.style
        except OSError as error:
            raise OutputError(
                "matplotlib finds no folder for its cache: set MPLCONFIGDIR to one that it may write to"
            ) from error
        with matplotlib.style.context("default"):
            yield
    finally:
        logger.setLevel(level)
