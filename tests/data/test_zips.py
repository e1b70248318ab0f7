"""Zips from strangers: bombs, lies about sizes, names that clash, files that change."""

import gc
import os
import struct
import warnings
import zipfile
import zlib

import pytest

from aecli.data.decoding.decode import decode
from aecli.data.sources.registry import list_images
from aecli.errors import DataError
from tests.support.data import fail_to_list
from tests.support.images import encoded, picture


def make_zip(path, members, method=zipfile.ZIP_STORED):
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", method) as archive:
        warnings.simplefilter("ignore")
        for name, data in members:
            archive.writestr(name, data)
    return path


def names(path):
    return [image.name for image in list_images(str(path))]


def by_hand(path, entries, data, count=None):
    """A zip whose table has (name, offset, compressed size, size, CRC, method) whatever is there."""
    table = b"".join(
        struct.pack(
            "<4s4B4HL2L5H2L", b"PK\1\2", 20, 0, 20, 0, 0, method, 0, 0, crc, packed, size, len(name), 0, 0, 0, 0, 0, at
        )
        + name
        for name, at, packed, size, crc, method in entries
    )
    count = len(entries) if count is None else count
    path.write_bytes(data + table + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(table), len(data), 0))
    return path


def local(name, packed, size, crc, method=8):
    return struct.pack("<4s2B4HL2L2H", b"PK\3\4", 20, 0, 0, method, 0, 0, crc, packed, size, len(name), 0) + name


def test_members_that_share_their_bytes_are_refused(tmp_path):
    kernel = zlib.compress(bytes(10**6), 9)[2:-4]
    data = local(b"a.png", len(kernel), 10**6, zlib.crc32(bytes(10**6))) + kernel
    entry = (0, len(kernel), 10**6, zlib.crc32(bytes(10**6)), 8)
    quoted = [(f"{number}.png".encode(), *entry) for number in range(1000)]
    fail_to_list(by_hand(tmp_path / "a.zip", quoted, data), "overlap")
    beyond = (b"a.png", 0, len(data) + 100, 10**6, 0, 8)
    fail_to_list(by_hand(tmp_path / "b.zip", [beyond], data), "overlap")
    assert names(by_hand(tmp_path / "c.zip", [(b"a.png", *entry)], data)) == ["a.png"]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_whose_output_can_not_be_bounded_are_refused(tmp_path, method):
    path = make_zip(tmp_path / "a.zip", [("a.png", bytes(10**6))], method)
    fail_to_list(path, "a.png", "not compressed by deflate", "unpack")


def test_a_method_that_nobody_knows_is_refused(tmp_path):
    fail_to_list(by_hand(tmp_path / "a.zip", [(b"a.png", 0, 1, 1, 0, 93)], local(b"a.png", 1, 1, 0) + b"x"), "a.png")


@pytest.mark.parametrize("lie", [-50, 50, 10**6])
def test_a_size_that_is_a_lie_is_told_and_never_more_is_read(tmp_path, lie):
    content = encoded(picture())
    packed = zlib.compress(content)[2:-4]
    size, crc = len(content) + lie, zlib.crc32(content)
    data = local(b"a.png", len(packed), size, crc) + packed
    (image,) = list_images(str(by_hand(tmp_path / "a.zip", [(b"a.png", 0, len(packed), size, crc, 8)], data)))
    if lie < 0:
        with pytest.raises(DataError, match="Bad CRC-32"):
            decode(image)
    else:
        assert len(image.load()) == len(content)


def test_an_image_in_an_image_s_folder_is_refused(tmp_path):
    clash = [("a.png", b"x"), ("a.png/b.png", b"y")]
    fail_to_list(make_zip(tmp_path / "a.zip", clash), "a.png both as an image and as a folder")
    fail_to_list(make_zip(tmp_path / "b.zip", [("x/a.png", b"x"), ("x/a.png/b/c.png", b"y")]), "x/a.png both")
    assert names(make_zip(tmp_path / "c.zip", [("a/b.png", b"x"), ("a.png", b"y")])) == ["a.png", "a/b.png"]


def test_odd_names_are_listed_or_refused_in_one_line(tmp_path):
    escape = "\x1b[31m\n.png"
    assert names(make_zip(tmp_path / "a.zip", [(escape, b"x")])) == [escape]
    message = fail_to_list(make_zip(tmp_path / "b.zip", [(escape, b"x"), (escape, b"y")]), r"\x1b[31m\n.png twice")
    assert message.isprintable()
    long = "x" * 60_000 + ".png"
    assert len(fail_to_list(make_zip(tmp_path / "c.zip", [(long, b"x"), (long, b"x")]), "twice")) < 500
    nameless = by_hand(tmp_path / "d.zip", [(b"", 0, 1, 1, 0, 0)], local(b"", 1, 1, 0, 0) + b"x")
    fail_to_list(nameless, "holds no images")
    cut = by_hand(tmp_path / "e.zip", [(b"a.png\0.exe", 0, 1, 1, 0, 0)], local(b"a.png\0.exe", 1, 1, 0, 0) + b"x")
    assert names(cut) == ["a.png"]  # as zipfile and others read it


def test_links_and_zips_inside_are_no_images(tmp_path):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    inner = make_zip(tmp_path / "inner.zip", [("a.png", encoded(picture()))]).read_bytes()
    members = [(link, b"/etc/passwd"), ("inner.zip", inner), ("named.png", inner)]
    listed = list_images(str(make_zip(tmp_path / "a.zip", members)))
    assert [image.name for image in listed] == ["link.png", "named.png"]
    for image in listed:
        with pytest.raises(DataError, match="not a PNG"):
            decode(image)


def test_wide_and_streamed_members_are_read(tmp_path):
    content = encoded(picture())
    read, write = os.pipe()
    with os.fdopen(read, "rb") as ours, os.fdopen(write, "wb") as theirs:
        with zipfile.ZipFile(theirs, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("a.png", "w", force_zip64=True) as member:
                member.write(content)
        theirs.close()
        (tmp_path / "a.zip").write_bytes(ours.read())
    (image,) = list_images(str(tmp_path / "a.zip"))
    assert image.load() == content


def test_a_table_that_lies_about_itself_is_damage(tmp_path):
    data = local(b"a.png", 1, 1, 0, 0) + b"x"
    path = by_hand(tmp_path / "a.zip", [(b"a.png", 0, 1, 1, 0, 0)], data)
    end = bytearray(path.read_bytes())
    for field, word in ((-10, "damaged"), (-6, "overlap")):  # the table's size, and its place
        changed = bytearray(end)
        changed[field : field + 4] = b"\xff\xff\xff\x7f"
        path.write_bytes(changed)
        fail_to_list(path, word)
    assert names(by_hand(tmp_path / "b.zip", [(b"a.png", 0, 1, 1, 0, 0)], data, count=65_535)) == ["a.png"]


def test_a_zip_replaced_since_it_was_listed_is_read_on_and_one_cut_is_refused(tmp_path):
    members = [("a.png", encoded(picture(20, 30))), ("b.png", encoded(picture(20, 30, 1)))]
    path = make_zip(tmp_path / "a.zip", members)
    listed = list_images(str(path))
    os.replace(make_zip(tmp_path / "other.zip", [("a.png", b"x")]), path)
    assert decode(listed[1]).shape == (20, 30, 3)
    path = make_zip(tmp_path / "b.zip", members)
    listed = list_images(str(path))
    os.truncate(path, 100)
    for image in listed:
        with pytest.raises(DataError, match=r"[ab]\.png: "):
            decode(image)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_a_zip_is_closed_with_its_last_image_and_when_it_is_refused(tmp_path):
    def is_open(path):
        opened = [os.path.join("/proc/self/fd", each) for each in os.listdir("/proc/self/fd")]
        return any(os.path.lexists(each) and os.readlink(each) == str(path) for each in opened)

    path = make_zip(tmp_path / "a.zip", [("a.png", encoded(picture()))])
    listed = list_images(str(path))
    assert is_open(path)
    del listed
    gc.collect()
    assert not is_open(path)
    for refused in (
        make_zip(tmp_path / "b.zip", [("../a.png", b"x")]),
        make_zip(tmp_path / "c.zip", [("a.txt", b"x")]),
    ):
        with pytest.raises(DataError):
            list_images(str(refused))
        assert not is_open(refused)
