"""What every kind of SOURCE of images keeps to: names, order, contents, fingerprints, and images as they were."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aecli.data.decoding.decode import decode
from aecli.data.sources import registry
from aecli.data.sources.registry import list_images, split_indices
from tests.support.data import fail_to_list, names
from tests.support.images import encoded, picture
from tests.support.shards import write_parquet, write_tar, write_zip

NAMES = ["a.png", "album/b.png", "album/c.png"]
PICTURES = [picture(seed=seed) for seed in range(len(NAMES))]
CONTENTS = [encoded(pixels) for pixels in PICTURES]


class StandIn:
    """In place of a torchvision data set, which would be downloaded."""

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        pass

    def __len__(self) -> int:
        return len(PICTURES)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(PICTURES[index]), 0


def folder(place: Path) -> str:
    for name, content in zip(NAMES, CONTENTS, strict=True):
        (place / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "images" / name).write_bytes(content)
    return str(place / "images")


def packed(place: Path) -> str:
    shutil.make_archive(str(place / "archive"), "zip", folder(place))
    return str(place / "archive.zip")


def tar(place: Path) -> str:
    return str(write_tar(place / "shard.tar", list(zip(NAMES, CONTENTS, strict=True))))


def parquet(place: Path) -> str:
    return str(write_parquet(place / "shard.parquet", CONTENTS))


def torchvision_set(place: Path) -> str:
    return "torchvision:CIFAR10"


MAKERS: dict[str, Callable[[Path], str]] = {
    "folder": folder, "zip": packed, "tar": tar, "parquet": parquet, "torchvision": torchvision_set,
}  # fmt: skip


@pytest.fixture(params=MAKERS)
def source(request, tmp_path, monkeypatch) -> str:
    """A SOURCE that holds `PICTURES`."""
    monkeypatch.setattr("torchvision.datasets.CIFAR10", StandIn)
    return MAKERS[request.param](tmp_path)


def test_every_registered_prefix_is_here():
    assert set(registry.PREFIXES) <= set(MAKERS)


class TestEverySource:
    def test_holds_the_images_that_were_put_there(self, source):
        for image, pixels in zip(list_images(source), PICTURES, strict=True):
            np.testing.assert_array_equal(decode(image).pixels, pixels)

    def test_lists_them_by_name(self, source):
        found = names(source)
        assert found == sorted(set(found))
        assert all(name and not name.startswith(("/", "..")) and "\\" not in name for name in found)

    def test_lists_the_same_every_time(self, source):
        one, other = ([(image.name, image.group, image.fingerprint) for image in list_images(source)] for _ in "12")
        assert one == other

    def test_may_be_read_by_many_threads(self, source):
        images = list_images(source) * 20
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(lambda image: decode(image).pixels.tobytes(), images))
        assert read == [pixels.tobytes() for pixels in PICTURES] * 20

    def test_is_split_into_all_of_its_images(self, source):
        images = list_images(source)
        train, val = split_indices(images, 0.5)
        assert sorted([*train, *val]) == list(range(len(images)))


@pytest.mark.parametrize("write", [write_zip, write_tar], ids=["zip", "tar"])
class TestArchives:
    def test_hold_what_a_folder_would_list(self, write, tmp_path):
        hidden = ["__MACOSX/a.png", ".x/a.png", "album/.y.png", "notes.txt"]
        members = [(name, b"x") for name in (*hidden, "./b/D.PNG", "a.png")]
        assert names(write(tmp_path / f"a.{suffix(write)}", members)) == ["a.png", "b/D.PNG"]

    @pytest.mark.parametrize(
        ("members", "words"),
        [
            *((name, "leads out") for name in ("../a.png", "a/../../b.png", "/a.png")),
            ("a.png ./a.png", "a.png twice"), ("b/a.png b//a.png", "b/a.png twice"),
            ("a.png a.png/b.png", "a.png both as an image and as a folder"),
            ("x/a.png x/a.png/b/c.png", "x/a.png both"),
        ],
    )  # fmt: skip
    def test_refuse_names_that_lead_out_or_clash(self, write, tmp_path, members, words):
        fail_to_list(write(tmp_path / f"a.{suffix(write)}", [(name, b"x") for name in members.split()]), words)

    def test_an_image_may_have_the_name_of_a_folder_without_its_suffix(self, write, tmp_path):
        path = write(tmp_path / f"a.{suffix(write)}", [("a/b.png", b"x"), ("a.png", b"y")])
        assert names(path) == ["a.png", "a/b.png"]

    def test_that_break_off_are_damaged(self, write, tmp_path):
        path = write(tmp_path / f"a.{suffix(write)}", list(zip(NAMES, CONTENTS, strict=True)))
        path.write_bytes(path.read_bytes()[:600])
        fail_to_list(path, "a.")


def suffix(write: Callable[..., Path]) -> str:
    return write.__name__.removeprefix("write_")


@pytest.mark.parametrize("make", ["folder", "zip", "tar"])
def test_the_same_files_have_the_same_names_in_any_container(make, tmp_path):
    assert names(MAKERS[make](tmp_path)) == NAMES


def test_another_picture_has_another_fingerprint(tmp_path):
    for suffix, write in {
        "zip": lambda path, content: write_zip(path, [("a.png", content)]),
        "tar": lambda path, content: write_tar(path, {"a.png": content}),
        "parquet": lambda path, content: write_parquet(path, [content]),
    }.items():
        found = set()
        for content in CONTENTS[:2]:
            write(tmp_path / f"x.{suffix}", content)
            found |= {image.fingerprint for image in list_images(str(tmp_path / f"x.{suffix}"))}
        assert len(found) == 2, suffix


class TestWhatHoldsNothing:
    @pytest.mark.parametrize("make", ["zip", "tar", "parquet", "folder"])
    def test_is_refused_by_name(self, make, tmp_path):
        path = tmp_path / f"empty.{make}"
        if make in ("zip", "tar"):
            {"zip": write_zip, "tar": write_tar}[make](path, [])
        elif make == "parquet":
            write_parquet(path, [])
        else:
            path.mkdir()
        fail_to_list(path)
