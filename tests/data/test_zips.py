"""Zips of unknown origin: bombs, false sizes, odd names, files that change."""

import gc
import os
import struct
import zipfile
import zlib

import pytest

from aecli.data.decoding.decode import decode
from aecli.data.sources.registry import list_images
from aecli.errors import DataError
from tests.support.data import fail_to_list, names
from tests.support.images import encoded, picture
from tests.support.shards import write_zip


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
    path = write_zip(tmp_path / "a.zip", [("a.png", bytes(10**6))], method)
    fail_to_list(path, "a.png", "not compressed by deflate", "unpack")


def test_a_method_that_nobody_knows_is_refused(tmp_path):
    fail_to_list(by_hand(tmp_path / "a.zip", [(b"a.png", 0, 1, 1, 0, 93)], local(b"a.png", 1, 1, 0) + b"x"), "a.png")


@pytest.mark.parametrize("lie", [-50, 50, 10**6])
def test_a_false_size_is_found_and_no_more_is_read(tmp_path, lie):
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


def test_odd_names_are_listed_or_refused_in_one_line(tmp_path):
    escape = "\x1b[31m\n.png"
    assert names(write_zip(tmp_path / "a.zip", [(escape, b"x")])) == [escape]
    message = fail_to_list(write_zip(tmp_path / "b.zip", [(escape, b"x"), (escape, b"y")]), r"\x1b[31m\n.png twice")
    assert message.isprintable()
    long = "x" * 60_000 + ".png"
    assert len(fail_to_list(write_zip(tmp_path / "c.zip", [(long, b"x"), (long, b"x")]), "twice")) < 500
    nameless = by_hand(tmp_path / "d.zip", [(b"", 0, 1, 1, 0, 0)], local(b"", 1, 1, 0, 0) + b"x")
    fail_to_list(nameless, "holds no images")
    cut = by_hand(tmp_path / "e.zip", [(b"a.png\0.exe", 0, 1, 1, 0, 0)], local(b"a.png\0.exe", 1, 1, 0, 0) + b"x")
    assert names(cut) == ["a.png"]  # as zipfile and others read it


def test_links_and_zips_inside_are_no_images(tmp_path):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    inner = write_zip(tmp_path / "inner.zip", [("a.png", encoded(picture()))]).read_bytes()
    members = [(link, b"/etc/passwd"), ("inner.zip", inner), ("named.png", inner)]
    listed = list_images(str(write_zip(tmp_path / "a.zip", members)))
    assert [image.name for image in listed] == ["link.png", "named.png"]
    for image in listed:
        with pytest.raises(DataError, match="a zip file|not a PNG"):
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


def test_a_false_size_or_place_of_the_table_is_damage(tmp_path):
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
    path = write_zip(tmp_path / "a.zip", members)
    listed = list_images(str(path))
    os.replace(write_zip(tmp_path / "other.zip", [("a.png", b"x")]), path)
    assert decode(listed[1]).pixels.shape == (20, 30, 3)
    path = write_zip(tmp_path / "b.zip", members)
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

    path = write_zip(tmp_path / "a.zip", [("a.png", encoded(picture()))])
    listed = list_images(str(path))
    assert is_open(path)
    del listed
    gc.collect()
    assert not is_open(path)
    for refused in (
        write_zip(tmp_path / "b.zip", [("../a.png", b"x")]),
        write_zip(tmp_path / "c.zip", [("a.txt", b"x")]),
    ):
        with pytest.raises(DataError):
            list_images(str(refused))
        assert not is_open(refused)


def test_zip_fingerprint_is_size_and_crc(tmp_path):
    data = encoded(picture())
    (image,) = list_images(str(write_zip(tmp_path / "a.zip", [("a.png", data)])))
    assert image.fingerprint == f"{len(data)}:{zlib.crc32(data):08x}"


def test_zip_with_encrypted_or_enormous_members(tmp_path):
    path = write_zip(tmp_path / "a.zip", [("a.png", b"x" * 100)])
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    for start, offset in ((0, 6), (central, 8)):
        data[start + offset] |= 1
    path.write_bytes(data)
    fail_to_list(path, "encrypted", "a.png")
    data[6], data[central + 8] = 0, 0
    data[central + 24 : central + 28] = (2**31 + 1).to_bytes(4, "little")
    path.write_bytes(data)
    fail_to_list(path, "a.png", str(2**31 + 1))


def test_zip_reads_no_more_than_declared(tmp_path):
    path = write_zip(tmp_path / "a.zip", [("a.png", b"x" * 10**6)], zipfile.ZIP_DEFLATED)
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    data[central + 24 : central + 28] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    (image,) = list_images(str(path))
    try:
        assert len(image.load()) <= 10
    except OSError:
        pass  # the checksum of ten bytes is another one


@pytest.mark.parametrize(
    ("top", "expected"), [("photos/", ["a.png", "b/c.png"]), ("other/", ["other/a.png", "other/b/c.png"])]
)
def test_a_zip_called_after_the_folder_in_it_has_the_folders_names(tmp_path, top, expected):
    members = [(top + name, encoded(picture())) for name in ("a.png", "b/c.png")]
    images = list_images(str(write_zip(tmp_path / "photos.zip", members)))
    assert [image.name for image in images] == [image.group for image in images] == expected
    assert images[0].load() == encoded(picture())


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("M\u00fcller.png".encode(), "M\u00fcller.png"),
        ("\u5c71/\u5ddd.png".encode(), "\u5c71/\u5ddd.png"),
        (b"M\x81ller.png", "M\u00fcller.png"),  # code page 437, as the format has it
        (b"plain.png", "plain.png"),
    ],
)
def test_names_are_utf_8_where_their_bytes_are_without_the_flag(tmp_path, stored, name):
    content = encoded(picture())
    size, crc = len(content), zlib.crc32(content)
    path = by_hand(tmp_path / "a.zip", [(stored, 0, size, size, crc, 0)], local(stored, size, size, crc, 0) + content)
    (image,) = list_images(str(path))
    assert image.name == name
    assert decode(image).pixels.shape == (24, 32, 3)
