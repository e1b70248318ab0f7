"""Untrusted files as weights of LPIPS: read, or refused in one error, in no more memory than their size."""

import os
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from aecli.errors import WeightsError
from aecli.metrics.network_weights import backbone_weights
from aecli.progress import ignore

NAME = "features.0.weight"


def read(path):
    return backbone_weights("vgg", path, ignore).tensors


def refuse(path, reason):
    with pytest.raises(WeightsError, match=f"can't be read as weights of LPIPS vgg: .*{reason}") as caught:
        read(path)
    line, hint = str(caught.value).splitlines()
    assert line.isprintable() and len(line) < 500 and hint.startswith("hint: ")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.tensor([1.0, float("nan")]), "not finite"),
        (torch.tensor([1e300], dtype=torch.float64), "not finite"),  # in float32, in which LPIPS computes
        (torch.tensor([1, 2]), "not a dense tensor of floating-point numbers"),
        (torch.tensor([True]), "not a dense tensor of floating-point numbers"),
    ],
)
def test_weights_that_are_not_finite_are_refused(tmp_path, value, reason):
    save_file({NAME: value}, tmp_path / "w.safetensors")
    refuse(tmp_path / "w.safetensors", reason)
    torch.save({NAME: value}, tmp_path / "w.pth")
    refuse(tmp_path / "w.pth", reason)


@pytest.mark.parametrize("value", [torch.tensor([1j]), torch.zeros(2, device="meta"), torch.eye(2).to_sparse()])
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_tensors_of_other_kinds_are_refused(tmp_path, value):
    torch.save({NAME: value}, tmp_path / "w.pth")
    refuse(tmp_path / "w.pth", "not a dense tensor of floating-point numbers")


def test_a_pickle_that_gives_out_memory_that_it_does_not_hold_is_refused(tmp_path):
    """One number as a tensor of 2^40, for which no memory is taken until something is computed of it."""
    torch.save({NAME: torch.zeros(1).expand(2**40)}, tmp_path / "w.pth")
    refuse(tmp_path / "w.pth", "larger than the file")
    held = torch.zeros(1000)
    torch.save({f"features.{number}.weight": held for number in range(100)}, tmp_path / "w.pth")
    refuse(tmp_path / "w.pth", "larger than the file")


def test_a_compressed_pickle_is_refused_before_it_is_unpacked(tmp_path):
    torch.save({NAME: torch.zeros(10**6)}, tmp_path / "plain.pth")
    packed = zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member))
    assert os.path.getsize(tmp_path / "w.pth") < 10**5
    refuse(tmp_path / "w.pth", "compressed")


def test_names_that_are_not_strings_are_ignored(tmp_path):
    """A tuple of tuples of tuples … is short in a file, and without end in words."""
    name = ("x",)
    for _ in range(16):
        name = (name, name)
    torch.save({name: torch.zeros(2), 7: torch.zeros(2), NAME: torch.ones(2)}, tmp_path / "w.pth")
    assert read(tmp_path / "w.pth").keys() == {NAME}


def test_what_lpips_does_not_use_of_a_file_is_not_read(tmp_path):
    save_file({NAME: torch.ones(2), "classifier.1.bias": torch.tensor([float("nan")])}, tmp_path / "w.safetensors")
    assert read(tmp_path / "w.safetensors").keys() == {NAME}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(WeightsError, match="no such file"):
        read(tmp_path / name)
