"""Which images of Python are taken as data, and how others are refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from aecli.configs import GridConfig, ReconstructConfig, TrainConfig
from aecli.errors import ConfigError

STACK = np.zeros((4, 6, 8, 3), np.uint8)


class Items:
    """A map-style Dataset of so many items."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return STACK[0], index


class NoLength(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return STACK[0]


@pytest.mark.parametrize(
    ("images", "described"),
    [
        (STACK, "array of 4 images 6×8"),
        (STACK[..., 0], "array of 4 images 6×8"),
        (np.zeros((1200, 1, 1), np.uint8), "array of 1,200 images 1×1"),
        (torch.zeros(4, 3, 6, 8, dtype=torch.uint8), "tensor of 4 images 6×8"),
        (torch.zeros(4, 6, 8, dtype=torch.uint8), "tensor of 4 images 6×8"),
        ([Image.new("RGB", (8, 6)), STACK[0], STACK[0, ..., 0], torch.zeros(3, 6, 8, dtype=torch.uint8)],
         "list of 4 pictures"),
        (["a.png"], "list of 1 path"),
        (Items(7), "Items of 7 images"),
    ],
)  # fmt: skip
def test_images_are_a_source_with_a_description(images, described):
    config = TrainConfig("vae", data=images, val_data=images)
    for source in (config.data.source, config.data.val_source):
        assert source == f"python:{described}"
    assert config.replace(epochs=2).data.source.content is config.data.source.content
    assert ReconstructConfig("vae", data=images).data == GridConfig(data=images).data == f"python:{described}"


def test_an_array_is_not_copied():
    assert TrainConfig("vae", data=STACK).data.source.content is STACK


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (
            STACK / 255,
            r"array float64 \(4, 6, 8, 3\): expected uint8, from 0 to 255\n.*\(x \* 255\)\.round\(\)\.astype",
        ),
        (torch.zeros(4, 3, 6, 8), r"tensor float32 .*\n.*\(\(x \+ 1\) \* 127\.5\)\.round\(\)\.to\(torch\.uint8\)"),
        (STACK.astype(int), r"int64 .*\nhint: values from 0 to 255: x\.astype\('uint8'\)"),
        (STACK[0], r"array uint8 \(6, 8, 3\): expected \(N, H, W, 3\) or \(N, H, W\)\nhint: .*x\[None\]"),
        (STACK.transpose(0, 3, 1, 2), r"hint: x\.transpose\(0, 2, 3, 1\)"),
        (torch.from_numpy(STACK), r"hint: x\.permute\(0, 3, 1, 2\)"),
        (STACK[:0], r"expected \(N, H, W, 3\)"),
        (STACK[:, :, :0], r"expected \(N, H, W, 3\)"),
        (np.zeros((2, 6, 8, 4), np.uint8), r"expected \(N, H, W, 3\)"),
        (np.zeros(5, np.uint8), r"expected \(N, H, W, 3\)"),
        ([STACK[0], STACK[0] / 255], "item 1, array float64"),
        ([STACK], "item 0, array uint8"),
        (["a.png", STACK[0]], "item 0, 'a.png': expected a PIL image"),
        ([], "holds no images"),
        (Items(0), "holds no images"),
        (NoLength(), "map-style Dataset, which has a length"),
        (iter([STACK]), "of type list_iterator: expected a source, an array"),
        ({"image": STACK}, "of type dict: expected"),
        (3, " 3: expected a source"),
    ],
)
def test_what_is_no_image_is_refused_with_the_range_and_the_way_out(images, said):
    for flag, option in (("--data", "data"), ("--val-data", "val_data")):
        with pytest.raises(ConfigError, match=f"(?s)^{flag}.*{said}"):
            TrainConfig("vae", **{option: images})


def test_the_conversions_that_are_named_give_the_same_pixels():
    x = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for scaled in (x / 255, x / 127.5 - 1):
        for given in (scaled, torch.from_numpy(scaled)):
            with pytest.raises(ConfigError) as caught:
                TrainConfig("vae", data=given)
            ways = [way.rpartition(": ")[2] for way in str(caught.value).partition("hint: ")[2].split("; ")]
            made = [np.asarray(eval(way, {"x": given, "torch": torch})) for way in ways]
            assert [np.array_equal(each, x) for each in made] == [scaled.min() >= 0, scaled.min() < 0]
