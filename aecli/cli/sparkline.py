"""A row of numbers as one line of text."""

import math
from collections.abc import Sequence

SPARKS = 40  # columns of a sparkline; with text beside it, it fits where bars do
_BLOCKS = "▁▂▃▄▅▆▇█"
_LOG_RANGE = 10.0  # above this ratio the scale is logarithmic


def sparkline(values: Sequence[float], columns: int) -> str:
    """Return `values` as at most `columns` block characters, each a mean; "" for fewer than two values.

    The scale is logarithmic where the largest mean is over ten times the smallest.
    """
    if len(values) < 2 or columns < 2:
        return ""
    count = min(columns, len(values))
    parts = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(part) / len(part) for part in parts]
    if min(means) > 0 and max(means) > _LOG_RANGE * min(means):
        means = [math.log(mean) for mean in means]
    low, span = min(means), max(means) - min(means)
    steps = [round((mean - low) / span * (len(_BLOCKS) - 1)) if span else 0 for mean in means]
    return "".join(_BLOCKS[step] for step in steps)
