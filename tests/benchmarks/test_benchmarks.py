"""The benchmarks, which are run by hand: what they import is there, and their parts do what they say on tiny inputs."""

import importlib
import json
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from aecli.configs import TrainConfig
from aecli.data.packs import pack
from aecli.runtime.distributed import Distributed
from tests.benchmarks import evaluation, gpu, resnet, scale, scaling_ranks
from tests.support.imports import require_imports
from tests.support.trained import ok, write_images

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if not path.stem.startswith("test_"))


@pytest.mark.parametrize("name", NAMES)
def test_what_it_and_its_scripts_import_is_there(name):
    module = importlib.import_module(f"tests.benchmarks.{name}")
    scripts = [value for value in vars(module).values() if isinstance(value, str) and "\nimport " in value]
    assert scripts or name not in ("evaluation", "inference", "scale", "startup", "training")
    for script in scripts:
        require_imports(script)


def test_those_for_a_gpu_are_there():
    assert {part[1].removeprefix("tests.benchmarks.") for part in (*gpu.PARTS, *gpu.TINY)} <= set(NAMES)
    assert sum(part[0] for part in gpu.PARTS) < 8 * 60


def test_a_part_that_takes_too_long_ends_with_what_it_started(tmp_path):
    assert gpu.run_within(60, [sys.executable, "-c", "raise SystemExit(3)"]) == 3
    started = f"(sleep 1; touch {tmp_path / 'late'}) & wait"
    assert gpu.run_within(0.2, ["sh", "-c", started]) == gpu.TIMED_OUT
    time.sleep(1.2)
    assert not (tmp_path / "late").exists()


def run_script(script, monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["-c", *map(str, arguments)])
    capsys.readouterr()
    exec(script, {"__name__": "__main__"})
    return capsys.readouterr().out


def test_both_ways_of_eval_measure_the_same(tmp_path, monkeypatch, capsys):
    evaluation.make_images(tmp_path, 2)
    found = json.loads(ok(*evaluation.ours(tmp_path, "psnr,ssim", ["one"], "cpu")[3:]).stdout)["results"][0]
    plain = run_script(evaluation.PLAIN, monkeypatch, capsys, tmp_path / "gt", tmp_path / "one", "")
    assert [float(value) for value in plain.split()] == pytest.approx(
        [found["psnr"]["mean"], found["ssim"]["mean"]], abs=1e-3
    )


def test_both_ways_of_a_step_of_resnet_train():
    model, images = resnet.prepared(4, 2, 32)
    for way in (resnet.plain_step, resnet.our_step):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        assert resnet.timed(way(model, images))() >= 0
        assert any(not before[name].equal(value) for name, value in model.state_dict().items())


def test_files_are_indexed_out_of_a_pack_that_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pack, "decode_fitted", pack.decode_fitted)  # the script replaces it
    scale.make_files(tmp_path / "files", 3)
    scale.make_pack(tmp_path / "files", tmp_path / "packs")
    printed = run_script(scale.INDEX, monkeypatch, capsys, tmp_path / "files", tmp_path / "packs")
    assert json.loads(printed)["seconds"] > 0


def test_a_process_of_scaling_measures_its_step(tmp_path):
    images = str(write_images(tmp_path / "images"))
    config = TrainConfig("vae", data=images, val_fraction=0.0, image_size=32, batch_size=4, compile="off", cache="off",
                         options={"width": 2}, out=tmp_path / "run")  # fmt: skip
    with ExitStack() as held:
        session = scaling_ranks._session(config, held.enter_context(Distributed()), held)
        found = scaling_ranks.measure(session, 1)
    assert (found["ranks"], found["images"]) == (1, 4) and found["step_s"] > 0
