"""Where and how a model runs, by what the hardware says of itself."""

import pytest
import torch

from aecli.errors import DeviceError
from aecli.runtime import device as device_module
from aecli.runtime.device import place, resolve_device, should_compile


@pytest.fixture
def hardware(monkeypatch):
    """Pretend to have CUDA, MPS, and fast bf16 as told."""

    def pretend(cuda=False, mps=False, amx=False, avx=False, cuda_bf16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if cuda else 0)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda_bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)

    return pretend


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ({"cuda": True, "mps": True}, "cuda"),
        ({"mps": True}, "mps"),
        ({}, "cpu"),
    ],
)
def test_auto_picks_cuda_then_mps_then_the_cpu(hardware, machine, expected):
    hardware(**machine)
    assert resolve_device("auto").type == expected


@pytest.mark.parametrize(
    ("machine", "precision"),
    [
        ({"amx": True}, "bf16"),
        ({"avx": True}, "bf16"),
        ({}, "fp32"),
        ({"cuda": True}, "bf16"),
        ({"cuda": True, "cuda_bf16": False}, "fp32"),
        ({"mps": True}, "fp32"),
    ],
)
def test_auto_trains_in_bf16_where_the_hardware_multiplies_it_and_runs_the_rest_in_fp32(hardware, machine, precision):
    hardware(**machine)
    assert place(training=True).precision == precision
    assert place().precision == "fp32"
    assert place(precision="bf16").precision == "bf16"
    assert place().channels_last == ("mps" not in machine)


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_here_is_refused_by_name(hardware, wanted):
    hardware()
    with pytest.raises(DeviceError, match=f"--device {wanted}"):
        resolve_device(wanted)


def test_a_cuda_number_beyond_the_last_is_refused(hardware):
    hardware(cuda=True)
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(DeviceError, match="0 to 1"):
        resolve_device("cuda:2")


def test_compiling_follows_the_wish_and_the_compiler(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(device_module, "_has_compiler", lambda device: True)
    assert should_compile("on", cpu, steps=1)
    assert not should_compile("off", cuda, steps=10**6)
    assert should_compile("auto", cuda, steps=10**6)
    assert not should_compile("auto", cuda, steps=100)
    assert not should_compile("auto", cpu, steps=10**6)
    monkeypatch.setattr(device_module, "_has_compiler", lambda device: False)
    assert not should_compile("auto", cuda, steps=10**6)
    with pytest.raises(DeviceError, match="--compile on"):
        should_compile("on", cpu, steps=1)


def test_autocast_computes_in_the_precision_and_only_there():
    layer = torch.nn.Linear(4, 4)
    with place("cpu", "bf16").autocast():
        assert layer(torch.ones(1, 4)).dtype == torch.bfloat16
    with place("cpu", "fp32").autocast():
        assert layer(torch.ones(1, 4)).dtype == torch.float32
