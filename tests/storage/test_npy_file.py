"""`.npy` files of unknown origin."""

import numpy as np
import pytest

from aecli.storage.npy_file import read_npy


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "<i4", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_are_read_as_numpy_reads_them(tmp_path, dtype, order):
    values = np.asarray(np.arange(24).reshape(2, 3, 4), dtype=dtype, order=order)
    np.save(tmp_path / "a.npy", values)
    found = read_npy(tmp_path / "a.npy")
    assert found.dtype == np.float32 and found.flags.c_contiguous
    np.testing.assert_array_equal(found, np.load(tmp_path / "a.npy"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-1], lambda content: content + b"\0", lambda content: content[:20], lambda _: b"",
        lambda content: content.replace(b"(3,)", b"(9,)"), lambda content: content.replace(b"<f4", b"|O8"),
        lambda content: content.replace(b"\x93NUMPY\x01", b"\x93NUMPY\x09"),
        lambda content: content.replace(b"(3,)", b"(-3"),
    ],
)  # fmt: skip
def test_damage_is_a_value_error(tmp_path, damage):
    np.save(tmp_path / "a.npy", np.arange(3, dtype=np.float32))
    path = tmp_path / "a.npy"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError):
        read_npy(path)


def test_what_is_no_file_is_an_os_error(tmp_path):
    with pytest.raises(OSError):
        read_npy(tmp_path)
