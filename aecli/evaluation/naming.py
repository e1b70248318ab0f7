"""How people name predictions after the ground truth: by a template, in a folder around everything, in other shards."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from aecli.configs.checks import TEMPLATE_FIELD, is_template, split_template
from aecli.data.sources.shards import is_stream

Shortened = dict[str, str]  # a shorter key -> the key in its source

_NUMBER = re.compile(r"\d+(?=\D*$)", re.ASCII)  # the last one
_SAMPLE = 16  # names that are tried to find a template
_TRIED = 3  # templates that are tried of each field


def shortened_keys(source: str, keys: Collection[str]) -> Iterator[tuple[str, Shortened]]:
    """Yield what is left off of all keys of a source, and the shorter ones: first nothing, then folders around all."""
    yield "", {key: key for key in keys}
    around = posixpath.commonpath(map(posixpath.dirname, keys)) if keys else ""
    parts = around.split("/") if around else []
    for depth in range(1, len(parts) + 1):
        folder = "/".join(parts[:depth]) + "/"
        yield folder, {key.removeprefix(folder): key for key in keys}
    if is_stream(source):
        without_shard = {key.partition("/")[2]: key for key in keys}
        if len(without_shard) == len(keys) and "" not in without_shard:
            yield "SHARD/", without_shard


def rename(template: str, key: str, suffix: str) -> str:
    """Return the key of the prediction that a template gives to a ground truth; see `is_template`.

    It is empty where the template names other ground truths.
    """
    if template == "{}":
        return key
    pattern, wanted = split_template(template)
    folder, name = ("", key) if "/" in template else posixpath.split(key)
    before, _, after = pattern.partition("{}")
    if not (name.startswith(before) and name.endswith(after) and len(name) >= len(before) + len(after)):
        return ""
    name = name[len(before) : len(name) - len(after)]
    match = re.search(TEMPLATE_FIELD, wanted)
    assert match is not None  # for the type checker: templates have been checked
    field = match[0]
    if field == "{name}":
        name += suffix
    elif field != "{}":
        name = _NUMBER.sub(lambda number: format(int(number[0]), field[2:-1]), name)
    return posixpath.join(folder, wanted.replace(field, name))


def find_template(truths: Mapping[str, str], predictions: Collection[str]) -> tuple[str, int]:
    """Return the template by which most keys of `truths` (key -> suffix) are in `predictions`, and how many are.

    It has a constant prefix and suffix, in the ground truth too if need be, and may change the padding of numbers or
    repeat the suffix; empty if there is none that serves at least half of the smaller side.
    """
    best, most = "", 0
    around = _constant_part(truths)
    for pattern in ("", f"{around[0]}{{}}{around[1]}=") if any(around) else ("",):
        for field in _fields(predictions):
            for template, _ in _around(pattern, field, truths, predictions).most_common(_TRIED):
                hits = sum(rename(template, key, suffix) in predictions for key, suffix in truths.items())
                if hits > most:
                    best, most = template, hits
                if hits == len(truths):
                    return best, most
    return (best, most) if 2 * most >= min(len(truths), len(predictions)) else ("", 0)


def _constant_part(keys: Collection[str]) -> tuple[str, str]:
    """What all names begin with and end in, without digits at its inner end, which are part of numbers."""
    names = [posixpath.basename(key) for key in keys]
    before = os.path.commonprefix(names).rstrip("0123456789")
    rest = [name[len(before) :] for name in names]
    after = os.path.commonprefix([name[::-1] for name in rest])[::-1].lstrip("0123456789")
    return (before, after) if all(len(name) > len(after) for name in rest) else ("", "")


def _fields(predictions: Collection[str]) -> Iterator[str]:
    yield from ("{}", "{:d}", "{name}")
    widths = Counter(len(match[0]) for key in predictions if (match := _NUMBER.search(key)))
    yield from (f"{{:0{width}d}}" for width, _ in widths.most_common(_TRIED) if 1 < width < 10)


def _around(pattern: str, field: str, truths: Mapping[str, str], predictions: Collection[str]) -> Counter[str]:
    """Count the templates with that field by which some ground truths have a prediction."""
    found: Counter[str] = Counter()
    for key in list(truths)[:: max(1, len(truths) // _SAMPLE)]:
        folder, name = posixpath.split(rename(pattern + field, key, truths[key]))
        start = len(folder) + 1 if folder else 0
        for prediction in predictions:
            if name in prediction and (at := prediction.find(name, start)) >= 0 and prediction.startswith(folder):
                template = pattern + prediction[start:at] + field + prediction[at + len(name) :]
                if is_template(template) and template.isprintable():
                    found[template] += 1
    return found
