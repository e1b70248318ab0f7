from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


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
