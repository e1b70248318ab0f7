import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from aecli.data.sources.registry import list_images, split_indices
from tests.support.data import fail_to_list


def test_demo_pieces_are_cut_from_the_photographs():
    import skimage

    images = list_images("demo")
    assert 85 <= len(images) <= 110
    assert len({image.name for image in images}) == len(images)
    pieces = {image.name: np.asarray(image.load()) for image in images}
    assert {piece.shape for piece in pieces.values()} == {(256, 256, 3)}
    assert min(piece.std() for piece in pieces.values()) > 5  # none is blank
    # At their own size, pieces are the photograph's pixels.
    astronaut = np.asarray(Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png"))
    np.testing.assert_array_equal(pieces["astronaut/s2-r0-c0.png"], astronaut[:256, :256])
    np.testing.assert_array_equal(pieces["astronaut/s2-r1-c2.png"], astronaut[128:384, 256:])
    shrunk = Image.fromarray(astronaut).resize((256, 256), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(pieces["astronaut/s0-r0-c0.png"], np.asarray(shrunk))
    coffee = np.asarray(Image.open(Path(skimage.__file__).parent / "data" / "coffee.png"))
    np.testing.assert_array_equal(pieces["coffee/s1-r2-c3.png"], coffee[-256:, -256:])


def test_demo_is_the_same_list_every_time():
    assert list_images("demo") == list_images("demo")


def test_demo_holds_out_whole_photographs():
    images = list_images("demo")
    train, val = split_indices(images, 0.1)
    sides = [{images[index].name.split("/")[0] for index in side} for side in (train, val)]
    assert sides[1] == {"chelsea"}
    assert not sides[0] & sides[1]
    assert 4 <= len(val) <= 12
    stereo = {image.group for image in images if "motorcycle" in image.name}
    assert stereo == {"motorcycle"}


def test_listing_demo_imports_neither_skimage_nor_torchvision():
    code = "import sys; from aecli.data.sources.registry import list_images; list_images('demo'); "
    code += "sys.exit(any(name in sys.modules for name in ('skimage', 'torchvision', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_demo_without_its_pictures(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fail_to_list("demo", "scikit-image", "pip install")
