"""Promise: any image file or zip is decoded, or refused in one line, however it is made.

Worker processes decode under a cap of memory, so that a crash or a hang of native code is seen and counted too.
"""

import io
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aecli.data.decoding.decode import DecodeError, decode, decode_fitted, fit, image_size
from aecli.data.image_ref import ImageRef
from aecli.data.sources.registry import list_images
from aecli.errors import DataError
from tests.soak.hostile_images import hostile
from tests.soak.image_seeds import image_seeds, zip_seeds

SEED = 20_240_607
MEMORY_CAP = 3 * 2**30  # bytes of address space of a worker, libraries included
SECONDS_A_FILE = 120  # for four ways to decode up to 2^28 pixels on a busy machine
PROCESSES = 2
SIDE = 24

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is capped and measured as on Linux")


@dataclass
class Tally:
    """Outcomes by format, faults with the number to repeat them, the slowest file and the peak of memory."""

    outcomes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)
    peak_bytes: int = 0

    def add(self, other: "Tally") -> None:
        self.outcomes += other.outcomes
        self.reasons += other.reasons
        self.faults += other.faults
        self.slowest = max(self.slowest, other.slowest)
        self.peak_bytes = max(self.peak_bytes, other.peak_bytes)


def require_refusal(error: DataError, text: str) -> None:
    """A refusal is one line that can be printed as it is, and at most a second one with a hint."""
    problem, *hints = text.split("\n")
    assert problem.isprintable() and "".join(hints).isprintable(), f"a message that can't be printed: {text!a}"
    assert len(hints) <= 1 and all(hint.startswith("hint: ") for hint in hints), f"a message of many lines: {text!a}"
    assert 0 < len(text) < 400, f"a message of {len(text)} characters"
    assert type(error) in (DataError, DecodeError)


def try_image(content: bytes) -> str:
    """Decode in every way; returns what came of it, raises what must not be."""
    image = ImageRef("a.png", "a.png", f"{len(content)}:", lambda: content)
    found: dict[str, object] = {}
    ways = {
        "size": image_size,
        "decode": lambda ref: decode(ref).pixels,
        "full depth": lambda ref: decode(ref, (0, 0, 0), full_depth=True).pixels,
        "squash": lambda ref: decode_fitted(ref, SIDE, "squash").pixels,
        "crop": lambda ref: decode_fitted(ref, SIDE, "crop").pixels,
    }
    for name, way in ways.items():
        try:
            found[name] = way(image)
        except DecodeError as error:
            require_refusal(error, error.reason)
            found[name] = error
    pixels, squashed = found["decode"], found["squash"]
    if isinstance(pixels, DecodeError):
        if "memory" not in pixels.reason:
            assert isinstance(found["full depth"], DecodeError), f"at full depth, but decode says {pixels.reason}"
            assert isinstance(squashed, DecodeError), f"fitted, but decode says {pixels.reason}"
        return f"refused: {pixels.reason}"
    assert isinstance(pixels, np.ndarray)
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.flags.c_contiguous
    assert found["size"] == pixels.shape[:2], f"image_size says {found['size']}, decode {pixels.shape}"
    for name in ("squash", "crop"):
        fitted = found[name]
        if isinstance(fitted, np.ndarray):
            np.testing.assert_array_equal(fitted, fit(pixels, SIDE, name))
        else:
            assert "elongated" in str(fitted) or "memory" in str(fitted), f"decoded, but {name} says {fitted}"
    return "decoded"


def try_zip(content: bytes, path: Path) -> str:
    path.write_bytes(content)
    try:
        images = list_images(str(path))
    except DataError as error:
        require_refusal(error, str(error))
        return "refused: " + str(error).replace(str(path), "zip")
    for image in images:
        assert ".." not in image.name.split("/") and not image.name.startswith("/")
        try:
            decode(image)
        except DecodeError as error:
            require_refusal(error, error.reason)
    return "listed"


def work(kind: str, numbers: list[int], conn: Connection) -> None:
    """Try the files of these numbers, telling each before it is begun, and the tally at the end."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_CAP, MEMORY_CAP))
    warnings.filterwarnings("ignore", module="PIL")  # as the command line does
    seeds = zip_seeds() if kind == "zip" else image_seeds()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as stderr:
        os.dup2(stderr.fileno(), 2)
        path, said = Path(folder, "a.zip"), 0
        for number in numbers:
            conn.send(number)
            name, content = hostile(seeds, SEED, number)
            began = time.monotonic()
            try:
                outcome = try_zip(content, path) if kind == "zip" else try_image(content)
            except Exception as error:  # whatever it is, it is a fault to report, and the others go on
                tally.faults.append(f"{kind} {number} ({name}): {type(error).__name__}: {error}"[:300])
                outcome = "fault"
            tally.slowest = max(tally.slowest, (time.monotonic() - began, number))
            word, _, reason = outcome.partition(": ")
            tally.outcomes[f"{name.partition('-')[0]} {word}"] += 1
            tally.reasons[reason] += 1
            if (size := os.fstat(2).st_size) > said:
                text = os.pread(2, 200, said)
                tally.faults.append(f"{kind} {number} ({name}): on standard error: {text!a}")
                said = size
    tally.peak_bytes = peak_bytes()
    conn.send(tally)


def peak_bytes() -> int:
    """The most memory that this process ever had."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


@dataclass
class Worker:
    """A process, the numbers given to it, the one that it is at, and since when."""

    numbers: list[int]
    process: multiprocessing.process.BaseProcess
    at: int | None = None
    since: float = field(default_factory=time.monotonic)


def start(kind: str, numbers: list[int]) -> tuple[Connection, Worker]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(kind, numbers, theirs))
    process.start()
    theirs.close()
    return ours, Worker(numbers, process)


def campaign(kind: str, count: int, keep: Path) -> Tally:
    """Try `count` files in worker processes; one that crashes or hangs its worker is a fault and is kept in `keep`."""
    seeds = zip_seeds() if kind == "zip" else image_seeds()
    total = Tally()
    workers = dict(start(kind, list(range(first, count, PROCESSES))) for first in range(PROCESSES))
    while workers:
        ready = wait(list(workers), timeout=1)
        for conn, worker in list(workers.items()):
            failure = ""
            if conn in ready:
                try:
                    message = conn.recv()
                except EOFError:
                    worker.process.join()
                    failure = f"a crash (exit {worker.process.exitcode})"
                else:
                    if isinstance(message, Tally):
                        total.add(message)
                        worker.process.join()
                        del workers[conn]
                    else:
                        worker.at, worker.since = message, time.monotonic()
            elif time.monotonic() - worker.since > SECONDS_A_FILE:
                worker.process.kill()
                worker.process.join()
                failure = "no end in sight"
            if failure:
                assert worker.at is not None, f"a worker could not begin: {failure}"
                name, content = hostile(seeds, SEED, worker.at)
                kept = keep / f"{kind}-{worker.at}"
                kept.write_bytes(content)
                total.faults.append(f"{kind} {worker.at} ({name}): {failure}; kept as {kept}")
                del workers[conn]
                workers |= dict([start(kind, worker.numbers[worker.numbers.index(worker.at) + 1 :])])
    return total


def show(kind: str, count: int, total: Tally, seconds: float) -> None:
    print(f"\n{count} {kind} files in {seconds:.0f} s: {dict(sorted(total.outcomes.items()))}")
    print(f"slowest {total.slowest[0]:.2f} s (number {total.slowest[1]}), peak {total.peak_bytes / 2**20:.0f} MiB")
    for reason, times in total.reasons.most_common(60):
        print(f"  {times:6} {reason}")


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *(pytest.param(k, n, marks=pytest.mark.slow) for k, n in (("image", 300), ("zip", 100))),
        *(pytest.param(k, n, marks=pytest.mark.soak) for k, n in (("image", 120_000), ("zip", 20_000))),
    ],
)
def test_hostile_files_are_decoded_or_refused_in_one_line(kind, count, tmp_path):
    began = time.monotonic()
    total = campaign(kind, count, tmp_path)
    show(kind, count, total, time.monotonic() - began)
    assert not total.faults, "\n".join(total.faults[:30])
    assert sum(total.outcomes.values()) == count
    assert total.peak_bytes < MEMORY_CAP
    good = sum(times for outcome, times in total.outcomes.items() if outcome.endswith(("decoded", "listed")))
    assert 0.1 * count < good < 0.9 * count  # or the changes miss what they are to hit


def most_memory(kind: str, side: int, conn: Connection) -> None:
    """Send how much memory decoding took, in bytes a pixel, for a blank picture of that kind."""
    picture = Image.new({"rgba": "RGBA", "wide": "I;16", "float": "F"}.get(kind, "L"), (side, side))
    file = io.BytesIO()
    options = {"png": {}, "jpeg": {"progressive": True}, "webp": {"lossless": True, "method": 0}}.get(kind, {})
    formats = {"png": "PNG", "rgba": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
    picture.save(file, formats.get(kind, "TIFF"), **options or {"compression": "tiff_deflate"})
    content = file.getvalue()
    del picture, file
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    decode(ImageRef("a", "a", "", lambda: content))
    conn.send((peak_bytes() - before) / side**2)


@pytest.mark.parametrize(
    ("kind", "side"),
    [
        *(pytest.param(kind, 3000, marks=pytest.mark.slow) for kind in ("rgba", "wide")),
        *(
            pytest.param(kind, 16_383, marks=pytest.mark.soak)
            for kind in ("png", "rgba", "wide", "float", "jpeg", "webp")
        ),
    ],
)
def test_a_pixel_takes_twenty_bytes_at_most_while_it_is_decoded(kind, side):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=most_memory, args=(kind, side, theirs))
    process.start()
    theirs.close()
    taken = ours.recv()
    process.join()
    print(f"\n{kind} {side}x{side}: {taken:.1f} bytes a pixel")
    assert 3 < taken < 20  # intermediate results are made in bands
