import hashlib
import os
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import encoded, picture
from PIL import Image

from aecli.data import sources
from aecli.data.sources import ImageRef, list_images, split_indices
from aecli.errors import DataError


def names(source):
    return [image.name for image in list_images(str(source))]


def fail_with(source, *words):
    with pytest.raises(DataError) as caught:
        list_images(str(source))
    message = str(caught.value)
    assert "\n" not in message
    for word in (str(source), *words):
        assert word in message
    return message


# Folders


def test_folder_lists_images_of_every_suffix_recursively_and_sorted(image_folder):
    wanted = ["B.PNG", "a.jpeg", "a.png", "deep/er/x.TIFF", "deep/y.tif", "e.webp", "f.bmp", "g [1]\n.jpg"]
    folder = image_folder(*wanted)
    for unwanted in ("notes.txt", "c.gif", ".hidden.png", ".git/h.png", "__MACOSX/i.png", "deep/.x/j.png", "png"):
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_fifo_is_never_opened(image_folder, tmp_path):
    folder = image_folder("a.png")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(tmp_path / "pipe")
    assert names(folder) == ["a.png"]
    fail_with(tmp_path / "pipe", "neither a folder nor a .zip")


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
    fail_with(tmp_path / "nowhere", "no such folder")
    fail_with(tmp_path / ("x" * 5000), "no such folder")
    fail_with("", "''", "no such folder")
    fail_with("a\0b", "no such folder")
    (tmp_path / "empty").mkdir()
    fail_with(tmp_path / "empty", "holds no images", "png, jpg, jpeg, webp, bmp, tif, tiff")
    (tmp_path / "notes.txt").write_text("no image")
    fail_with(tmp_path, "holds no images")
    fail_with(tmp_path / "notes.txt", "no zip", "folder")


def test_unknown_prefix_names_what_exists():
    message = fail_with("hf:some/set", "hf:", "torchvision:", "demo", ".zip")
    assert message.count("hf:") >= 1


def test_existing_folder_beats_a_prefix_and_dot_demo_is_a_folder(image_folder, tmp_path, monkeypatch):
    image_folder("a.png", folder="torchvision:FakeData")
    image_folder("b.png", folder="demo")
    monkeypatch.chdir(tmp_path)
    assert names("torchvision:FakeData") == ["a.png"]
    assert names("./demo") == ["b.png"]
    assert "b.png" not in names("demo")


def test_a_new_source_is_one_function(monkeypatch):
    image = ImageRef("one.png", "one.png", "", lambda: b"")
    monkeypatch.setitem(sources.PREFIXES, "mine", lambda text: [image] if text == "a:b" else [])
    assert list_images("mine:a:b") == [image]
    fail_with("mine:none", "holds no images")


# Zip files


def make_zip(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def test_zip_is_the_folder_it_holds(image_folder, tmp_path):
    folder = image_folder("a.png", "sub/B.PNG", "sub/c.png")
    members = [(name, (folder / name).read_bytes()) for name in ("sub/c.png", "a.png", "sub/B.PNG")]
    extra = [("notes.txt", b"x"), ("__MACOSX/a.png", b"x"), (".x/a.png", b"x"), ("sub/.y.png", b"x"), ("d.png/", b"")]
    path = make_zip(tmp_path / "images.ZIP", members + extra, compression=zipfile.ZIP_DEFLATED)
    listed = list_images(str(path))
    assert [image.name for image in listed] == names(folder)
    with ThreadPoolExecutor(8) as pool:
        contents = list(pool.map(lambda image: image.load(), listed * 50))
    assert contents == [(folder / image.name).read_bytes() for image in listed] * 50


def test_zip_fingerprint_is_size_and_crc(tmp_path):
    data = encoded(picture())
    (image,) = list_images(str(make_zip(tmp_path / "a.zip", [("a.png", data)])))
    import zlib

    assert image.fingerprint == f"{len(data)}:{zlib.crc32(data):08x}"


@pytest.mark.parametrize("name", ["../a.png", "a/../../b.png", "/a.png", "C:\\a.png", "..\\a.png"])
def test_zip_that_leads_out_of_itself(tmp_path, name):
    fail_with(make_zip(tmp_path / "a.zip", [(name, b"x")]), "leads out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_a_name_twice(tmp_path):
    fail_with(make_zip(tmp_path / "a.zip", [("a.png", b"x"), ("a.png", b"y")]), "a.png twice")
    fail_with(make_zip(tmp_path / "b.zip", [("b/a.png", b"x"), ("b//a.png", b"y")]), "b/a.png twice")


def test_zip_with_encrypted_or_enormous_members(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a.png", b"x" * 100)])
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    for start, offset in ((0, 6), (central, 8)):
        data[start + offset] |= 1
    path.write_bytes(data)
    fail_with(path, "encrypted", "a.png")
    data[6], data[central + 8] = 0, 0
    data[central + 24 : central + 28] = (2**30 + 1).to_bytes(4, "little")
    path.write_bytes(data)
    fail_with(path, "a.png", str(2**30 + 1))


def test_zip_reads_no_more_than_declared(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a.png", b"x" * 10**6)], compression=zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    (image,) = list_images(str(path))
    try:
        assert len(image.load()) <= 10
    except zipfile.BadZipFile:
        pass  # the checksum of ten bytes is another one


def test_corrupt_zip(tmp_path):
    path = make_zip(tmp_path / "a.zip", [("a.png", encoded(picture()))])
    path.write_bytes(path.read_bytes()[:-30])
    fail_with(path, "damaged")


# demo


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
    code = "import sys; from aecli.data.sources import list_images; list_images('demo'); "
    code += "sys.exit(any(name in sys.modules for name in ('skimage', 'torchvision', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_demo_without_its_pictures(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fail_with("demo", "scikit-image", "pip install")


# torchvision


def test_torchvision_fake_data_equals_torchvision_and_leaves_the_random_state_alone():
    from torchvision.datasets import FakeData

    images = list_images("torchvision:FakeData")
    assert len(images) == 1000
    assert [image.name for image in images[:2]] == ["000000.png", "000001.png"]
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda image: np.asarray(image.load()), images[:40]))
    assert torch.equal(torch.get_rng_state(), state)
    for index in (0, 17, 39):
        np.testing.assert_array_equal(loaded[index], np.asarray(FakeData()[index][0]))


def test_torchvision_names_are_forgiving_and_fingerprints_tell_data_sets_apart(monkeypatch):
    import torchvision

    class Other(torchvision.datasets.FakeData):
        pass

    monkeypatch.setattr(torchvision.datasets, "Other", Other, raising=False)
    monkeypatch.setattr(torchvision.datasets, "__all__", (*torchvision.datasets.__all__, "Other"))
    fake, other = list_images("torchvision:fakedata"), list_images("torchvision:Other")
    assert fake[0].name == other[0].name
    assert fake[0].fingerprint != other[0].fingerprint


def test_torchvision_unknown_name_lists_close_ones():
    fail_with("torchvision:CIFAR11", "CIFAR10", "CIFAR100")
    fail_with("torchvision:", "CIFAR10", "MNIST")
    fail_with("torchvision:ImageFolder", "no such data set")


def test_torchvision_split_goes_where_the_constructor_takes_it(monkeypatch, own_cache):
    import torchvision

    calls = []

    class Recorder:
        def __init__(self, root, train=True, download=False, transform=None):
            calls.append((root, train, download))

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return Image.new("L", (4, 4), index)

    class BySplit(Recorder):
        def __init__(self, root, split="train", download=False):
            calls.append((root, split, download))

    root = str(own_cache / "aecli" / "torchvision")
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Recorder)
    monkeypatch.setattr(torchvision.datasets, "STL10", BySplit)
    assert len(list_images("torchvision:CIFAR10")) == 3
    assert np.asarray(list_images("torchvision:CIFAR10:test")[2].load()).tolist() == [[2] * 4] * 4
    list_images("torchvision:STL10")
    list_images("torchvision:STL10:unlabeled")
    expected = [(root, True, True), (root, False, True), (root, "train", True), (root, "unlabeled", True)]
    if sys.platform == "linux":
        assert calls == expected
    fail_with("torchvision:CIFAR10:val", "no split val", "train and test")
    fail_with("torchvision:EMNIST", "torchvision:EMNIST:SPLIT")
    fail_with("torchvision:CocoCaptions", "annFile", "folder")


def test_torchvision_set_that_is_not_of_images(monkeypatch):
    import torchvision

    class Tensors:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return torch.zeros(3, 4, 4), 1

    monkeypatch.setattr(torchvision.datasets, "MovingMNIST", Tensors)
    fail_with("torchvision:MovingMNIST", "not a data set of images", "Tensor")


@pytest.mark.parametrize("name", ["CIFAR10", "MNIST", "SVHN"])
def test_torchvision_without_a_network(monkeypatch, name):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    fail_with(f"torchvision:{name}", "can't be downloaded", "network")


# The split


def refs(groups):
    return [ImageRef(f"{index:05d}.png", group, "", bytes) for index, group in enumerate(groups)]


def test_split_follows_the_hash_and_stays_put_when_files_are_added():
    few, many = refs(f"g{i}" for i in range(500)), refs(f"g{i}" for i in range(5000))
    expected = [i for i in range(500) if int(hashlib.sha256(f"g{i}".encode()).hexdigest()[:16], 16) / 2**64 < 0.1]
    train, val = split_indices(few, 0.1)
    assert val == expected
    assert sorted(train + val) == list(range(500))
    assert [index for index in split_indices(many, 0.1)[1] if index < 500] == val
    assert 400 < len(split_indices(many, 0.1)[1]) < 600


def test_split_keeps_groups_whole():
    train, val = split_indices(refs(f"g{i // 7}" for i in range(700)), 0.3)
    assert not {index // 7 for index in train} & {index // 7 for index in val}
    assert len(val) % 7 == 0 and val


def test_split_never_empties_a_side_that_it_can_fill():
    by_hash = sorted("abcd", key=lambda name: hashlib.sha256(name.encode()).digest())
    assert split_indices(refs("abcd"), 1e-9)[1] == ["abcd".index(by_hash[0])]
    assert split_indices(refs("abcd"), 1 - 1e-9)[0] == ["abcd".index(by_hash[-1])]
    assert split_indices(refs("aaa"), 0.999) == ([0, 1, 2], [])
    assert split_indices(refs("aaa"), 1e-9) == ([0, 1, 2], [])
    assert split_indices(refs("abcd"), 0) == ([0, 1, 2, 3], [])
    assert split_indices([], 0.5) == ([], [])
