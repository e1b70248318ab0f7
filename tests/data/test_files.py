"""Other things than images under the name of one: pipes, devices, sockets, links, endless files."""

import os
import resource
import socket
import time

import pytest

from aecli.data.decoding.decode import decode, image_size
from aecli.data.image_ref import FILE_LIMIT
from aecli.data.sources.registry import list_images
from aecli.errors import DataError
from tests.support.data import fail_to_list, names
from tests.support.images import encoded, picture

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs pipes and links")


def refuse(image, *words):
    began = time.monotonic()
    for way in (decode, image_size):
        with pytest.raises(DataError) as caught:
            way(image)
        assert all(word in str(caught.value) for word in words), caught.value
    assert time.monotonic() - began < 2


def test_pipes_devices_and_sockets_are_passed_over_also_behind_links(image_folder, tmp_path, monkeypatch):
    folder = image_folder("a.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "to-pipe.png").symlink_to(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "terminal.png").symlink_to("/dev/tty")
    monkeypatch.chdir(folder)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        assert names(folder) == ["a.png"]
    os.mkfifo(tmp_path / "pipe")
    for place in ("/dev/zero", tmp_path / "pipe"):
        fail_to_list(place, "neither a folder nor a .zip")


@pytest.mark.parametrize("what", ["pipe", "link to a pipe", "device", "folder", "nothing"])
def test_a_file_replaced_since_it_was_listed_is_refused_without_waiting(image_folder, tmp_path, what):
    folder = image_folder("a.png")
    (image,) = list_images(str(folder))
    (folder / "a.png").unlink()
    if what == "pipe":
        os.mkfifo(folder / "a.png")
    elif what == "link to a pipe":
        os.mkfifo(tmp_path / "pipe")
        (folder / "a.png").symlink_to(tmp_path / "pipe")
    elif what == "device":
        (folder / "a.png").symlink_to("/dev/zero")
    elif what == "folder":
        (folder / "a.png").mkdir()
    refuse(image, {"folder": "Is a directory", "nothing": "No such file"}.get(what, "not a regular file"))


def test_a_file_larger_than_any_image_is_refused_unread(image_folder):
    folder = image_folder("a.png")
    os.truncate(folder / "a.png", 100 * 10**9)  # takes no room on the disk
    (image,) = list_images(str(folder))
    refuse(image, str(100 * 10**9), str(FILE_LIMIT))


def test_no_more_of_a_file_is_read_than_it_is_said_to_hold(image_folder):
    folder = image_folder("a.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (folder / "pages.png").symlink_to("/proc/self/pagemap")  # endless, and of size 0
    (folder / "status.png").symlink_to("/proc/self/status")
    by_name = {image.name: image for image in list_images(str(folder))}
    for name in ("pages.png", "status.png"):
        refuse(by_name[name], "empty file")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_a_file_cut_since_it_was_listed_is_refused_and_one_rewritten_is_read_whole(image_folder):
    folder = image_folder("a.png", "b.png")
    cut, grown = list_images(str(folder))
    os.truncate(folder / "a.png", 300)
    with pytest.raises(DataError, match=r"a\.png"):
        decode(cut)
    (folder / "b.png").write_bytes(encoded(picture(300, 200)))
    assert decode(grown).pixels.shape == (300, 200, 3)


def test_links_in_a_ring_and_to_themselves_end(image_folder):
    folder = image_folder("a.png", "one/b.png", "two/c.png")
    (folder / "one" / "two").symlink_to(folder / "two")
    (folder / "two" / "one").symlink_to(folder / "one")
    (folder / "x.png").symlink_to(folder / "y.png")
    (folder / "y.png").symlink_to(folder / "x.png")
    listed = list_images(str(folder))
    assert [image.name for image in listed] == [
        "a.png", "one/b.png", "one/two/c.png", "two/c.png", "two/one/b.png", "x.png", "y.png"
    ]  # fmt: skip
    refuse(listed[-1], "Too many levels of symbolic links")


def test_links_that_branch_and_meet_again_are_refused_before_they_are_followed_everywhere(tmp_path):
    levels = 40
    for level in range(levels):
        (tmp_path / f"level{level}").mkdir()
    for level in range(levels - 1):
        for branch in "ab":
            (tmp_path / f"level{level}" / branch).symlink_to(tmp_path / f"level{level + 1}")
    (tmp_path / f"level{levels - 1}" / "a.png").write_bytes(encoded(picture()))
    began = time.monotonic()
    with pytest.raises(DataError, match="more than 100 symbolic links lead to it"):
        list_images(str(tmp_path / "level0"))
    assert time.monotonic() - began < 5


def test_a_folder_linked_a_few_times_is_listed_each_time(image_folder):
    folder = image_folder("a.png", "real/b.png")
    for number in range(5):
        (folder / f"linked{number}").symlink_to(folder / "real")
    assert len(names(folder)) == 7
