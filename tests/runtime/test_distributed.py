"""torchrun's environment, collectives of several processes, and of one alone."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from aecli.errors import ConfigError, DeviceError
from aecli.models import registry
from aecli.runtime import device, distributed
from aecli.runtime.distributed import Distributed, is_lost, peer_timeout
from aecli.runtime.launch import Launch, launch
from aecli.training.compiling import sync_batchnorm
from tests.support.ranks import run_ranks

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "host", "MASTER_PORT": "1234"}


@pytest.fixture(autouse=True)
def fresh():
    launch.cache_clear()
    yield
    launch.cache_clear()


def set_environment(monkeypatch, **changes):
    for name, value in {**ENVIRONMENT, **changes}.items():
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)


class TestLaunch:
    def test_read_from_torchruns_environment(self, monkeypatch):
        set_environment(monkeypatch, TORCHELASTIC_RESTART_COUNT="2", TORCHELASTIC_USE_AGENT_STORE="True")
        found = launch()
        assert (found.rank, found.size, found.local_rank, found.attempt) == (3, 8, 1, 2)
        assert found.address == ("host", 1234) and found.is_served

    @pytest.mark.parametrize(
        "changes", [*({name: None} for name in ENVIRONMENT), {"RANK": "x"}, {"WORLD_SIZE": "-1"}, {"MASTER_PORT": ""}]
    )
    def test_alone_where_a_variable_is_missing_or_invalid(self, monkeypatch, changes):
        set_environment(monkeypatch, **changes)
        assert launch() == Launch()


class TestDevices:
    def test_each_process_has_its_own(self, monkeypatch):
        set_environment(monkeypatch)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        chosen = []
        monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
        assert device.resolve_device("auto") == device.resolve_device("cuda") == torch.device("cuda:1")
        assert chosen == [torch.device("cuda:1")] * 2
        for wanted in ("cuda:0", "mps"):
            with pytest.raises(DeviceError, match=f"--device {wanted}"):
                device.resolve_device(wanted)
        set_environment(monkeypatch, LOCAL_RANK="2")
        launch.cache_clear()
        with pytest.raises(DeviceError, match="has CUDA devices 0 to 1"):
            device.resolve_device("auto")


class TestAlone:
    def test_collectives_return_this_process_s_values(self):
        tensor = torch.ones(2)
        with Distributed() as distributed:
            assert (distributed.rank, distributed.world_size, distributed.is_main_process) == (0, 1, True)
            distributed.barrier()
            distributed.broadcast_tensors([tensor])
            assert distributed.broadcast_object({"a": 1}) == {"a": 1}
            assert distributed.all_gather_object([1]) == [[1]]
            assert [each.tolist() for each in distributed.all_gather(np.arange(3))] == [[0, 1, 2]]


class TestTogether:
    def test_collectives_return_values_in_the_order_of_ranks(self, tmp_path):
        assert run_ranks(tmp_path, ["--version"], 3, before=_exchange)[0] == [0, 0, 0]
        assert sorted(path.name for path in tmp_path.glob("met-*")) == ["met-0", "met-1", "met-2"]

    def test_only_rank_0_prints(self, tmp_path):
        statuses, printed, _ = run_ranks(tmp_path, ["--version"], 3)
        assert (statuses, printed.count("aecli ")) == ([0, 0, 0], 1)


def _exchange():
    with Distributed() as distributed:
        arrays = distributed.all_gather(np.full((distributed.rank, 2), distributed.rank, dtype=np.float64))
        assert [array.tolist() for array in arrays] == [[], [[1.0, 1.0]], [[2.0, 2.0]] * 2]
        assert [each.shape for each in distributed.all_gather(np.zeros((0, 2)))] == [(0, 2)] * 3
        assert distributed.all_gather_object({"rank": distributed.rank, "words": "x" * distributed.rank}) == [
            {"rank": rank, "words": "x" * rank} for rank in range(3)
        ]
        assert distributed.broadcast_object(distributed.rank) == 0
        tensors = [torch.full((2,), distributed.rank), torch.tensor(float(distributed.rank))]
        distributed.broadcast_tensors(tensors)
        assert [tensor.sum().item() for tensor in tensors] == [0, 0]
        Path(f"met-{distributed.rank}").touch()


class TestTrouble:
    @pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "1e12"])
    def test_an_invalid_timeout_is_refused(self, monkeypatch, text):
        monkeypatch.setenv(distributed.TIMEOUT_VARIABLE, text)
        with pytest.raises(ConfigError, match=f"{distributed.TIMEOUT_VARIABLE}={text}"):
            peer_timeout()

    def test_the_timeout_is_ten_minutes_or_the_variable(self, monkeypatch):
        assert peer_timeout() == 600
        monkeypatch.setenv(distributed.TIMEOUT_VARIABLE, "12.5")
        assert peer_timeout() == 12.5

    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (RuntimeError("[x.cc:538] Connection closed by peer [::1]:1"), True),
            (RuntimeError("Application timeout caused pair closure"), True),
            (torch.distributed.DistNetworkError("gone"), True),
            (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
            (ValueError("Connection closed by peer"), False),
        ],
    )
    def test_lost_peers_are_distinguished_from_other_errors(self, error, expected):
        assert is_lost(error) == expected


class TestBatchStatistics:
    class Two:
        world_size = 2

    class One:
        world_size = 1

    @pytest.mark.parametrize(
        ("mode", "kind", "distributed", "expected"),
        [
            ("auto", "cuda", Two, True),
            ("on", "cuda", Two, True),
            ("off", "cuda", Two, False),
            ("auto", "cpu", Two, False),
            ("auto", "cuda", One, False),
        ],
    )
    def test_are_synchronised_on_cuda(self, mode, kind, distributed, expected):
        model = registry.build("vae", registry.resolve_options("vae", {"width": 4}))
        before = {key: value.clone() for key, value in model.state_dict().items()}
        parameters = [id(parameter) for parameter in model.parameters()]
        converted = sync_batchnorm(model, mode, torch.device(kind), distributed())
        layers = [layer for layer in converted.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        assert len(layers) == 10 and all(isinstance(layer, nn.SyncBatchNorm) == expected for layer in layers)
        assert [id(parameter) for parameter in converted.parameters()] == parameters
        assert all(torch.equal(before[key], value) for key, value in converted.state_dict().items())


def test_launch_imports_no_torch():
    code = "import sys, aecli.runtime.launch; print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
