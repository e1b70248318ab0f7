import os

import pytest

from aecli.data.sources import registry
from aecli.data.sources.registry import ImageRef, list_images, split_indices
from aecli.errors import DataError
from tests.support.data import fail_to_list, names

# Folders


def test_folder_lists_images_of_every_suffix_recursively_and_sorted(image_folder):
    wanted = [
        "B.PNG",
        "a.jpeg",
        "a.png",
        "deep/er/x.TIFF",
        "deep/y.tif",
        "e.webp",
        "f.bmp",
        "h.gif",
        "i.avif",
        "j.JFIF",
        "k.jpe",
        "l.jp2",
        "m.pgm",
        "g [1]\n.jpg",
    ]
    folder = image_folder(*wanted)
    for unwanted in ("notes.txt", ".hidden.png", ".git/h.png", "__MACOSX/i.png", "deep/.x/j.png", "png"):
        path = folder / unwanted
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    (folder / "folder.png").mkdir()
    listed = list_images(str(folder))
    assert [image.name for image in listed] == sorted(wanted)
    assert all(image.load() == (folder / image.name).read_bytes() for image in listed)
    assert all(image.group == image.name for image in listed)
    assert next(image.key for image in listed if image.name == "deep/er/x.TIFF") == "deep/er/x"


def test_key_drops_one_suffix_only():
    assert ImageRef("a.b/c.tar.png", "", "", bytes).key == "a.b/c.tar"


def test_folder_follows_links_and_survives_loops(image_folder, tmp_path):
    folder = image_folder("a.png", "sub/b.png")
    elsewhere = image_folder("c.png", folder="elsewhere")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    (folder / "file.png").symlink_to(folder / "a.png")
    assert names(folder) == ["a.png", "file.png", "linked/c.png", "sub/b.png"]


def test_dangling_link_is_listed_and_fails_to_load(image_folder, tmp_path):
    folder = image_folder("a.png")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere")
    listed = list_images(str(folder))
    assert [image.name for image in listed] == ["a.png", "gone.png"]
    with pytest.raises(FileNotFoundError):
        listed[1].load()


def test_file_name_that_is_not_unicode(image_folder):
    folder = image_folder("a.png")
    try:
        os.rename(folder / "a.png", os.fsencode(folder) + b"/\xff.png")
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    (image,) = list_images(str(folder))
    assert os.fsencode(image.name) == b"\xff.png"
    assert image.load().startswith(b"\x89PNG")
    assert split_indices([image], 0.5) == ([0], [])


def test_fingerprint_follows_content_and_revision_tells_twins_apart(image_folder):
    folder = image_folder("a.png", "b.png")
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"same size " + name.encode())
        os.utime(folder / name, ns=(10**18, 10**18))
    a, b = list_images(str(folder))
    assert a.fingerprint == b.fingerprint == "15:1000000000000000000"
    assert a.revision != b.revision
    (folder / "a.png").write_bytes(b"longer than before")
    assert list_images(str(folder))[0].fingerprint != a.fingerprint


def test_folder_that_can_not_be_read(image_folder, monkeypatch):
    folder = image_folder("a.png", "sub/b.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"sub can't be read: Permission denied"):
        list_images(str(folder))


def test_missing_empty_and_imageless_sources(tmp_path):
    fail_to_list(tmp_path / "nowhere", "no such folder")
    fail_to_list(tmp_path / ("x" * 5000), "no such folder")
    fail_to_list("", "''", "no such folder")
    fail_to_list("a\0b", "no such folder")
    (tmp_path / "empty").mkdir()
    fail_to_list(tmp_path / "empty", "holds no images", "png, jpg, jpeg")
    (tmp_path / "notes.txt").write_text("no image")
    fail_to_list(tmp_path, "holds no images")
    fail_to_list(tmp_path / "notes.txt", "not a zip", "folder")


def test_unknown_prefix_names_what_exists():
    message = fail_to_list("nowhere:some/set", "nowhere:", "hf:", "torchvision:", "demo", ".zip")
    assert message.count("nowhere:") >= 2


def test_existing_folder_beats_a_prefix_and_dot_demo_is_a_folder(image_folder, tmp_path, monkeypatch):
    image_folder("a.png", folder="torchvision:FakeData")
    image_folder("b.png", folder="demo")
    monkeypatch.chdir(tmp_path)
    assert names("torchvision:FakeData") == ["a.png"]
    assert names("./demo") == ["b.png"]
    assert "b.png" not in names("demo")


def test_a_new_source_is_one_function(monkeypatch):
    image = ImageRef("one.png", "one.png", "", lambda: b"")
    monkeypatch.setitem(registry.PREFIXES, "mine", lambda text: [image] if text == "a:b" else [])
    assert list_images("mine:a:b") == [image]
    fail_to_list("mine:none", "holds no images")
