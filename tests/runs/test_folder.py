"""Run folders: the open format of config.json and metrics.csv, and what a MODEL argument names."""

import csv
import json

import pytest

from aecli.configs.train import TrainConfig
from aecli.errors import CheckpointError
from aecli.runs.folder import COLUMNS, RunFolder, locate

OLD = {
    "schema": 1, "model": {"name": "vae", "options": {"width": 4}},
    "options": {"model": "vae", "data": "images", "lr": 0.5}, "data": {"fingerprint": "f"},
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    (tmp_path / "vae").mkdir()
    folder = RunFolder(tmp_path / "vae")
    folder.write_config(OLD)
    return folder


def test_absent_keys_of_a_config_take_their_defaults(run):
    config = run.read_config()
    defaults = TrainConfig("vae").flat()
    recorded = {"model": "vae", "data": "images", "lr": 0.5}
    assert config["options"].items() >= recorded.items()
    for name in config["options"].keys() - recorded.keys() - {"options"}:
        default = defaults[name]
        assert config["options"][name] == (default if default is None else type(config["options"][name])(default))
    assert {"val_fraction", "image_size", "fit", "epochs", "ema", "patience"} <= config["options"].keys()
    assert config["val_data"] is None and config["placement"] == {"device": "", "compile": False}


def test_unknown_keys_of_a_config_are_kept_and_ignored(run):
    later = json.loads(json.dumps(OLD))
    later.update(later=1)
    later["options"].update(later=[2])
    later["model"].update(later=None)
    later["data"].update(later="x")
    run.write_config(later)
    config = run.read_config()
    assert config["later"] == 1 and config["options"]["later"] == [2] and run.is_ours()


def test_an_older_name_of_an_option_is_not_given_twice(run):
    run.write_config({**OLD, "options": {**OLD["options"], "accumulate": 3}})
    options = run.read_config()["options"]
    assert options["grad_accum"] == 3 and "accumulate" not in options


def test_invalid_fields_are_named(run):
    broken = json.loads(json.dumps(OLD))
    broken["options"].update(fit="stretch", image_size=-1)
    del broken["model"]["options"]
    run.write_config(broken)
    with pytest.raises(CheckpointError) as caught:
        run.read_config()
    first, hint = str(caught.value).split("\n")
    assert first == f"{run.config} is damaged: invalid fields: model.options, options.image_size, options.fit"
    assert hint.startswith("hint: ")


def test_further_columns_of_metrics_follow_the_first_ones(run):
    rows = [{"epoch": 1, "lr": 0.1, "val_lpips": 0.5}, {"epoch": 2, "train_kl": None, "usage": 0.25, "val_lpips": 0.4}]
    run.write_metrics(rows)
    with open(run.metrics, newline="") as file:
        reader = csv.DictReader(file)
        read = list(reader)
    assert reader.fieldnames == [*COLUMNS, "val_lpips", "usage"]
    for row, expected in zip(read, rows, strict=True):
        cells = {key: float(text) for key, text in row.items() if text}
        assert cells == {key: value for key, value in expected.items() if value is not None}


def test_a_run_in_the_working_folder_is_hinted_at(run, monkeypatch):
    monkeypatch.chdir(run.path.parent)
    with pytest.raises(CheckpointError) as caught:
        locate("vae", runs=run.path.parent / "runs")
    assert str(caught.value) == f"no run of 'vae' under {run.path.parent / 'runs'}\nhint: --model ./vae"
    with pytest.raises(CheckpointError, match="hint: train one with: aecli train ae"):
        locate("ae", runs=run.path.parent / "runs")
