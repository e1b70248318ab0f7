"""Safetensors files: valid ones are read to the last bit, damaged and hostile ones refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from aecli.storage.safetensors_file import open_tensors
from tests.soak.hostile import joined, split

TENSORS = {
    "weight": torch.arange(6, dtype=torch.float32).reshape(2, 3), "half": torch.tensor([1.5, -2]).half(),
    "brain": torch.tensor([[3.0]]).bfloat16(), "double": torch.tensor(0.1).double(), "none": torch.zeros(0, 5),
    "count": torch.tensor(7), "mask": torch.tensor([True, False]), "byte": torch.tensor([255], dtype=torch.uint8),
}  # fmt: skip


@pytest.fixture
def path(tmp_path):
    save_file(TENSORS, tmp_path / "w.safetensors", {"format": "pt", "said": "é"})
    return tmp_path / "w.safetensors"


def read(path):
    with open_tensors(path) as file:
        return file.read(), dict(file.metadata)


def refuse(path, reason):
    with pytest.raises(ValueError, match=reason):
        read(path)


def test_tensors_and_metadata_are_read_to_the_last_bit(path):
    tensors, metadata = read(path)
    assert metadata == {"format": "pt", "said": "é"}
    assert tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert tensors[name].dtype == value.dtype and torch.equal(tensors[name], value)


def test_tensors_are_their_own_whatever_becomes_of_the_file(path):
    """A mapped file that is cut short ends the process with a signal; one written over changes the weights."""
    tensors, _ = read(path)
    path.write_bytes(bytes(path.stat().st_size))
    os.truncate(path, 0)
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())


def test_a_file_cut_short_between_header_and_tensors_is_refused(path):
    save_file({"weight": torch.zeros(10**6)}, path)
    with open_tensors(path) as file:
        os.truncate(path, path.stat().st_size - 4)
        with pytest.raises(ValueError, match="changed while it was read"):
            file.read()


LIES = {
    "offsets past the end": (lambda h: h["weight"].update(data_offsets=[0, 2**40]), "invalid (shape|offset)"),
    "offsets reversed": (lambda h: h["weight"]["data_offsets"].reverse(), "invalid offset"),
    "offsets below zero": (lambda h: h["weight"].update(data_offsets=[-24, 0]), "invalid offset"),
    "offsets of three": (lambda h: h["weight"]["data_offsets"].append(0), "invalid offset"),
    "two in one place": (lambda h: h["half"].update(shape=[6], dtype="F32", data_offsets=h["weight"]["data_offsets"]),
                         "invalid offset|header asks for"),
    "one left out": (lambda h: h.pop("half"), "header asks for"),
    "another type": (lambda h: h["weight"].update(dtype="F64"), "header asks for"),
    "an unknown type": (lambda h: h["weight"].update(dtype="F8_E4M3"), "unsupported dtype 'F8_E4M3'"),
    "a type that is none": (lambda h: h["weight"].update(dtype=["F32"]), "unsupported dtype"),
    "another shape": (lambda h: h["weight"].update(shape=[2, 2]), "header asks for"),
    "a shape below zero": (lambda h: h["weight"].update(shape=[-2, -3]), "invalid shape"),
    "a shape of fractions": (lambda h: h["weight"].update(shape=[2.0, 3]), "invalid shape"),
    "a shape of truths": (lambda h: h["weight"].update(shape=[True, 6]), "invalid shape"),
    "a shape beyond 64 bits": (lambda h: h["weight"].update(shape=[2**62, 2**62]), "too large"),
    "nothing beyond 64 bits": (lambda h: h["none"].update(shape=[2**62, 2**62, 0]), "too large"),
    "a thousand axes": (lambda h: h["weight"].update(shape=[1] * 1000 + [6]), "invalid shape"),
    "a tensor that is a word": (lambda h: h.update(weight="F32"), "invalid shape"),
    "metadata that are no words": (lambda h: h["__metadata__"].update(said=1), "metadata is not"),
    "half of a surrogate pair": (lambda h: h["__metadata__"].update(said="\ud800"), "surrogates not allowed"),
    "metadata that are a list": (lambda h: h.update(__metadata__=[]), "metadata is not"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(path, lie):
    change, reason = LIES[lie]
    header, data = split(path.read_bytes())
    held = json.loads(header)
    change(held)
    path.write_bytes(joined(json.dumps(held), data))
    refuse(path, reason)
    if lie not in ("an unknown type", "a thousand axes"):  # which the library accepts
        with pytest.raises(SafetensorError):
            load(path.read_bytes())


def test_a_key_that_is_there_twice_is_refused(path):
    header, data = split(path.read_bytes())
    entry = json.dumps(json.loads(header)["weight"])
    path.write_bytes(joined(f'{{"weight":{entry},{header[1:]}', data))
    refuse(path, "duplicate key 'weight'")


def test_gaps_and_what_follows_the_tensors_are_refused(path):
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0")
    refuse(path, "header asks for")
    path.write_bytes(whole[:-1])
    refuse(path, "header asks for")


@pytest.mark.parametrize("length", [0, 1, 10**8 + 1, 2**60, 2**64 - 1])
def test_a_length_that_lies_is_refused(path, length):
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    refuse(path, "ends within its header|Expecting|not a JSON object")


def test_a_header_longer_than_the_format_allows_is_not_read(path):
    with open(path, "wb") as file:
        file.write((10**8 + 1).to_bytes(8, "little"))
        file.truncate(2 * 10**8)
    refuse(path, "longer than the format allows")


def test_booleans_other_than_0_and_1_are_refused(path):
    header, data = split(path.read_bytes())
    begin, _ = json.loads(header)["mask"]["data_offsets"]
    path.write_bytes(joined(header, data[:begin] + b"\x07" + data[begin + 1 :]))
    refuse(path, "boolean other than 0 and 1")


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own address space")
@pytest.mark.slow
def test_reading_takes_the_size_of_the_file_and_too_little_memory_is_a_memory_error(path):
    save_file({"weight": torch.zeros(25 * 10**6)}, path)
    script = f"""
import resource
from pathlib import Path
from aecli.storage.safetensors_file import open_tensors
with open_tensors(Path({str(path)!r})) as file:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    for spare in (50, 150):
        resource.setrlimit(resource.RLIMIT_AS, (used + spare * 10**6, most))
        try:
            file.read()
            print("read")
        except MemoryError:
            print("MemoryError")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert done.stdout == "MemoryError\nread\n", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_an_open_file_is_not_mapped(path):
    with open_tensors(path) as file:
        tensors = file.read()
        assert tensors and path.name not in Path("/proc/self/maps").read_text()
