"""Devices and precision by hardware, memory, and determinism."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from aecli.errors import DeviceError
from aecli.runtime.device import make_deterministic, place, resolve_device, seed_devices
from aecli.runtime.out_of_memory import is_out_of_memory


@pytest.fixture
def hardware(monkeypatch):
    """Pretend to have CUDA, MPS, or native bf16."""

    def pretend(cuda=False, mps=False, amx=False, avx=False, cuda_bf16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2 if cuda else 0)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cuda_bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)

    return pretend


@pytest.mark.parametrize(
    ("machine", "expected"), [({"cuda": True, "mps": True}, "cuda"), ({"mps": True}, "mps"), ({}, "cpu")]
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


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_a_device_in_use_is_seeded_as_torch_seeds_it(device):
    if device != "cpu" and not getattr(torch, device).is_available():
        pytest.skip(f"no {device} device")
    torch.zeros((), device=device)
    torch.manual_seed(2**63 + 5)
    expected = torch.rand(5, device=device)
    seed_devices(2**63 + 5)
    assert torch.equal(torch.rand(5, device=device), expected)


@pytest.mark.soak
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's memory is kept")
def test_freed_memory_is_kept_for_the_next_tensors():
    """Writing into memory that the process already has faults no pages in."""
    script = """if True:
        import resource, sys
        from aecli.runtime.device import resolve_device
        import torch
        if sys.argv[1] == "kept":
            resolve_device("cpu")
        def fill():
            torch.ones(2**24)  # 64 MB
        for _ in range(20):  # until the heap has room
            fill()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            fill()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    """
    kept, as_usual = (
        int(subprocess.run([sys.executable, "-c", script, way], capture_output=True, text=True, check=True).stdout)
        for way in ("kept", "usual")
    )
    assert kept < 100 < as_usual


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system itself keeps them apart")
@pytest.mark.slow
def test_peak_memory_is_this_processes_own_and_counts_bytes():
    """Linux hands the figure of getrusage down to the processes that a larger one starts."""
    child = "import torch; from aecli.runtime.memory import peak_memory; print(peak_memory(torch.device('cpu')))"
    parent = (
        f"import subprocess, sys; held = b'x' * 2**30; subprocess.run([sys.executable, '-c', {child!r}], check=True)"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 2**26 < int(done.stdout) < 2**30  # PyTorch alone takes more than 64 MB


@pytest.mark.parametrize("own", [None, ":16:8", ":0:0"])
def test_deterministic_leaves_nothing_to_the_clock_on_a_gpu(monkeypatch, own):
    """What PyTorch's page on reproducibility asks for; `:0:0` would make cuBLAS refuse at the first product."""
    asked = []
    monkeypatch.setattr(torch, "use_deterministic_algorithms", asked.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setenv("TORCHINDUCTOR_DETERMINISTIC", "0")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", own or "")
    if own is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    make_deterministic()
    assert asked == [True] and not torch.backends.cudnn.benchmark  # an error, not a warning, where it can't be had
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (":16:8" if own == ":16:8" else ":4096:8")
    assert os.environ["TORCHINDUCTOR_DETERMINISTIC"] == "1"


@pytest.mark.parametrize(
    "message", ["could not create a primitive", "std::bad_alloc", "can't allocate memory: you tried"]
)
def test_out_of_memory_on_a_cpu_is_recognised_by_its_message(message):
    assert is_out_of_memory(RuntimeError(message)) and not is_out_of_memory(RuntimeError("a bug"))
