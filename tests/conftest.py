import struct
import zlib
from collections.abc import Callable, Generator, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image

from aecli.data.decoding.decode import DecodeError, decode
from aecli.data.image_ref import ImageRef
from aecli.data.sources.registry import list_images
from aecli.errors import DataError

pytest.register_assert_rewrite("tests.soak.runs", "tests.support.processes", "tests.support.trained")

Result = TypeVar("Result")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests share one cache folder of their own, and never touch the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def picture(height: int = 24, width: int = 32, seed: int = 0) -> np.ndarray:
    """A smooth coloured uint8 (H, W, 3) picture with noise: every corner differs."""
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = np.stack([rows / height, columns / width, (rows + columns) / (height + width)], axis=-1)
    noise = np.random.default_rng(seed).random((height, width, 3))
    return (255 * (0.8 * smooth + 0.2 * noise)).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, format: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    pil = image if isinstance(image, Image.Image) else Image.fromarray(image)
    pil.save(buffer, format, **options)
    return buffer.getvalue()


def image_ref(content, name="folder/a [1].png"):
    return ImageRef(name, name, "", lambda: content)


def fail_to_decode(content, *words):
    with pytest.raises(DecodeError) as caught:
        decode(image_ref(content))
    assert isinstance(caught.value, DataError)
    assert caught.value.name == "folder/a [1].png"
    assert str(caught.value) == f"folder/a [1].png: {caught.value.reason}"
    assert "\n" not in caught.value.reason
    for word in words:
        assert word in caught.value.reason
    return caught.value


def hand_made_png(width, height, depth, colour, rows, extra=b""):
    """A PNG written by hand: `rows` are the unfiltered rows' bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def fail_to_list(source, *words):
    with pytest.raises(DataError) as caught:
        list_images(str(source))
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(source), *words):
        assert word in message
    return message


def finish(steps: Generator[Any, None, Result]) -> tuple[Result, list[Any]]:
    """Run a generator to its end: what it returns, and what it yielded."""
    reports = []
    while True:
        try:
            reports.append(next(steps))
        except StopIteration as end:
            return end.value, reports


@pytest.fixture
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than tiny epochs; only what asserts on the pictures (marked `draws`) needs them."""
    if "draws" not in request.keywords:
        monkeypatch.setattr("aecli.training.observers.previews.draw", lambda session: None)
        monkeypatch.setattr("aecli.training.observers.previews.PreviewWriter.draw_curves", lambda artist: None)


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a PNG under each of the given names and returns their folder."""

    def make(*names: str, folder: str = "images", height: int = 24, width: int = 32) -> Path:
        for seed, name in enumerate(names):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture(height, width, seed)))
        return tmp_path / folder

    return make
