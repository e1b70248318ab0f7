"""Shards as a list of images: tars by an index, Parquet in memory, and damaged tars refused."""

import io
import tarfile

import pytest
from PIL import Image

from aecli.data.decoding.decode import decode
from aecli.data.sources import shards as shards_module
from aecli.data.sources.registry import list_images
from tests.support.data import fail_to_list
from tests.support.images import encoded, picture
from tests.support.shards import write_parquet, write_tar, write_tars


def pixels(images):
    return {image.name: decode(image).pixels.tobytes() for image in images}


def test_a_tar_is_a_list_of_its_images_by_their_paths(tmp_path):
    members = {f"album/{seed}.png": encoded(picture(seed=seed)) for seed in range(3)} | {"album/0.txt": b"words"}
    images = list_images(str(write_tar(tmp_path / "a.tar", members | {".hidden.png": b"", "__MACOSX/a.png": b""})))
    by_pillow = {
        name: Image.open(io.BytesIO(content)).tobytes() for name, content in members.items() if name.endswith("png")
    }
    assert pixels(images) == by_pillow
    assert len({image.fingerprint for image in images}) == 3


def test_images_of_several_tars_have_their_tars_names(tmp_path):
    write_tars(tmp_path, [2, 3])
    images = list_images(str(tmp_path / "*.tar"))
    assert [image.name for image in images] == ["0/000.png", "0/001.png", "1/000.png", "1/001.png", "1/002.png"]
    assert len(set(pixels(images).values())) == 5


def test_parquet_is_a_list_of_numbered_images(tmp_path):
    contents = [encoded(picture(seed=0)), encoded(Image.fromarray(picture(seed=1)), "JPEG")]
    images = list_images(str(write_parquet(tmp_path / "a.parquet", contents)))
    assert [image.name for image in images] == ["00000000.png", "00000001.jpg"]
    assert [image.load() for image in images] == contents


def test_more_than_memory_is_for_is_refused(tmp_path, monkeypatch):
    path = write_parquet(tmp_path / "a.parquet", [encoded(picture(seed=seed)) for seed in range(9)])
    monkeypatch.setattr(shards_module, "LIST_LIMIT", 5000)
    fail_to_list(path, "can be trained on, but not listed")


def test_members_that_are_no_files_are_passed_over(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.png": encoded(picture())})
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"{kind.decode()}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert [image.name for image in list_images(str(tmp_path / "a.tar"))] == ["a.png"]


@pytest.mark.parametrize("keep", [600, 1500])
def test_a_tar_cut_short_is_refused(tmp_path, keep):
    write_tar(tmp_path / "a.tar", {"a.png": encoded(picture()), "b.png": encoded(picture(seed=1))})
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:keep])
    fail_to_list(tmp_path / "a.tar", "of", "bytes")


def test_what_is_no_tar_is_refused(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"words" * 500)
    fail_to_list(tmp_path / "a.tar", "damaged or incomplete tar")
