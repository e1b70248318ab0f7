"""Images given in Python, listed: their names, their pixels, their fingerprints."""

import numpy as np
import pytest
import torch
from PIL import Image

from aecli.configs.given_images import given_images
from aecli.data.decoding.decode import DecodeError, decode
from aecli.data.image_ref import data_fingerprint
from aecli.data.packs.pack import pack_key
from aecli.data.sources.folders import list_folder
from aecli.data.sources.given import read_given
from aecli.data.sources.registry import list_images
from aecli.data.sources.selection import Selection
from aecli.errors import DataError
from tests.support.images import picture, save_image

STACK = np.stack([picture(6, 8, seed) for seed in range(12)])


class Items(torch.utils.data.Dataset):
    """A Dataset of what `make` returns for each index."""

    def __init__(self, make, count=12):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.make(index)


def listed(images):
    return list_images(given_images("--data", images))


def read(images):
    """The source after its images were read for their fingerprint."""
    reading = read_given(given_images("--data", images))
    while True:
        try:
            next(reading)
        except StopIteration as end:
            return end.value


SAME = {
    "array": lambda: STACK,
    "view": lambda: STACK[::-1][::-1],
    "tensor": lambda: torch.from_numpy(STACK).permute(0, 3, 1, 2),
    "pictures": lambda: [Image.fromarray(each) for each in STACK],
    "arrays": lambda: list(STACK),
    "dataset": lambda: Items(lambda index: STACK[index]),
    "labelled": lambda: Items(lambda index: (Image.fromarray(STACK[index]), 3)),
    "mappings": lambda: Items(lambda index: {"label": 3, "image": torch.from_numpy(STACK[index]).permute(2, 0, 1)}),
    "subset": lambda: torch.utils.data.Subset(Items(lambda index: STACK[index]), range(12)),
}


@pytest.mark.parametrize("kind", SAME)
def test_pictures_of_all_kinds_are_the_same_images_under_their_index(kind):
    images = listed(SAME[kind]())
    assert [image.name for image in images] == [f"{index:06d}.png" for index in range(12)]
    assert np.array_equal(np.stack([decode(image).pixels for image in images]), STACK)
    assert data_fingerprint(images) == data_fingerprint(listed(STACK))
    assert pack_key(images, 4, "squash") == pack_key(listed(STACK), 4, "squash")


def test_grey_pictures_are_grey_images():
    grey = STACK[..., 0]
    for images in (grey, torch.from_numpy(grey), torch.from_numpy(grey)[:, None], grey[..., None]):
        decoded = [decode(image).pixels for image in listed(images)]
        assert np.array_equal(np.stack(decoded), np.repeat(grey[..., None], 3, axis=-1))


def test_the_fingerprint_changes_with_any_pixel_and_the_order():
    changed = STACK.copy()
    changed[7, 3, 2, 1] ^= 1
    found = {read(images) for images in (STACK, STACK.copy(), changed, STACK[::-1], STACK.transpose(0, 2, 1, 3))}
    assert len(found) == 4 and read(STACK).startswith("python:array of 12 images 6×8 (")
    turned = [Image.fromarray(each) for each in STACK]
    turned[0].getexif()[274] = 6
    assert len({data_fingerprint(listed(each)) for each in (turned, STACK, changed)}) == 3
    assert len({pack_key(listed(each), 4, "squash") for each in (turned, STACK, changed)}) == 3


def test_paths_are_the_folder_that_holds_them(tmp_path):
    for seed, name in enumerate(("b/2.png", "a.png", "b/1.png")):
        save_image(tmp_path / name, picture(6, 8, seed))
    paths = [tmp_path / "b/2.png", str(tmp_path / "a.png"), tmp_path / "b/../b/1.png"]
    images = listed(paths)
    folder = sorted(list_folder(str(tmp_path), Selection(), []), key=lambda image: image.name)
    assert images == folder and data_fingerprint(images) == data_fingerprint(folder)
    assert read(paths) == read(paths[::-1])


@pytest.mark.parametrize(("wrong", "said"), [("gone.png", "no such file"), (".", "no such file"), ("a.png", "twice")])
def test_paths_that_are_no_files_or_come_twice_are_refused(tmp_path, wrong, said):
    save_image(tmp_path / "a.png", picture(6, 8))
    with pytest.raises(DataError, match=said):
        listed([tmp_path / "a.png", tmp_path / wrong])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda index: torch.rand(3, 4, 4), r"item 0, tensor float32 .*: expected uint8, from 0 to 255\nhint: .*255"),
        (lambda index: {"pixels": STACK[0]}, "item 0, of type dict: expected a PIL image"),
        (lambda index: index, "item 0, 0: expected a PIL image"),
    ],
)
def test_items_that_are_no_pictures_are_refused(make, said):
    with pytest.raises(DataError, match=f"Items: {said}"):
        read(Items(make))


def test_a_dataset_that_changes_is_found_out():
    generator = np.random.default_rng(0)
    source = read(Items(lambda index: generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)))
    with pytest.raises(DataError, match=r"000003\.png: another picture.*\n.*random transforms"):
        decode(list_images(source)[3])


def test_a_picture_that_can_not_be_read_is_an_unreadable_image(tmp_path):
    save_image(tmp_path / "a.png", picture(64, 64))
    cut = tmp_path / "cut.png"
    cut.write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    with Image.open(tmp_path / "a.png") as one, Image.open(cut) as other:
        whole, damaged = list_images(read([one, other]))
        assert decode(whole).pixels.shape == (64, 64, 3)
        with pytest.raises(DecodeError, match=r"000001\.png"):
            decode(damaged)


def test_errors_of_a_dataset_of_ones_own_stay_as_they_are():
    with pytest.raises(ZeroDivisionError):
        read(Items(lambda index: 1 // 0))
