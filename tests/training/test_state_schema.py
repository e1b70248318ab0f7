"""The document of last.safetensors: open to newer and older versions, and safe against hostile files."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch.amp import GradScaler

from aecli.errors import CheckpointError
from aecli.models import registry
from aecli.training.state_schema import load_state, validate_scaler
from tests.support.objectives import fresh_state
from tests.support.trained import TRAIN, fails, ok, rewrite

PARTS = ("epoch", "clock", "best", "rows", "lr")
STATES = {
    **{f"no {key}": lambda d, key=key: d.pop(key) and None for key in PARTS},
    "an epoch that never was": lambda d: d.update(epoch=10**18),
    "another epoch than its clock's": lambda d: d.update(epoch=1),
    "an epoch below zero": lambda d: d.update(epoch=-1) or d["clock"].update(epoch=-1),
    "an epoch of truth": lambda d: d.update(epoch=True) or d["clock"].update(epoch=True),
    "a step below zero": lambda d: d["clock"].update(step=-1),
    "a step before its epoch": lambda d: d["clock"].update(step=1),
    "a batch beyond its steps": lambda d: d["clock"].update(batch=10**18),
    "seconds below zero": lambda d: d["clock"].update(seconds=-1.0),
    "seconds as text": lambda d: d["clock"].update(seconds="1"),
    "a rate below zero": lambda d: d.update(lr=-1e-4),
    "a rate as text": lambda d: d.update(lr="1e-4"),
    "scaling that is a list": lambda d: d.update(scaler=[1]),
    "the best of an epoch to come": lambda d: d["best"].update(epoch=3),
    "a best loss of text": lambda d: d["best"].update(loss="x"),
    "no best loss": lambda d: d["best"].update(loss=None),
    "best figures of text": lambda d: d["best"]["metrics"].update(val_psnr="\x1b[2J"),
    "best figures missing": lambda d: d["best"].update(metrics={}),
    "best figures that are a word": lambda d: d["best"].update(metrics="x"),
    "stopped by a word": lambda d: d.update(stopped_early="no"),
    "losses that are a number": lambda d: d.update(losses=1),
    "rows that are a number": lambda d: d.update(rows=2),
    "a row too few": lambda d: d["rows"].pop() and None,
    "rows in another order": lambda d: d["rows"].reverse(),
    "a row of lists": lambda d: d["rows"][0].update(val_psnr=[1]),
    "a row of text": lambda d: d["rows"][0].update(train_loss="=cmd|' /C calc'!A0"),
    "a row without its loss": lambda d: d["rows"][0].update(train_loss=None),
    "a row that can't be drawn": lambda d: d["rows"][0].update(val_psnr=1e300),
    "a row that is a word": lambda d: d["rows"].__setitem__(0, "row"),
}


@pytest.mark.parametrize("change", STATES)
def test_an_invalid_document_is_refused_with_a_hint(run, change):
    rewrite(run / "last.safetensors", STATES[change])
    with pytest.raises(CheckpointError, match=r"last\.safetensors is damaged") as caught:
        load_state(run / "last.safetensors")
    first, second = str(caught.value).split("\n")
    assert first.isprintable() and len(first) < 500 and second == "hint: --restart begins the run again"


def test_the_invalid_fields_are_named(run):
    rewrite(run / "last.safetensors", lambda d: d.update(lr="fast", stopped_early=1) or d["clock"].update(step=-1))
    with pytest.raises(CheckpointError, match="is damaged: invalid fields: clock, lr, stopped_early\n"):
        load_state(run / "last.safetensors")


UNKNOWN = {
    "a key": lambda d: d.update(more={"a": [1]}),
    "a counter": lambda d: d["clock"].update(day=1),
    "a schedule, as older versions kept it": lambda d: d.update(schedule={"best": 1}),
    "a metric": lambda d: d["best"]["metrics"].update(mood=0.25),
    "a column": lambda d: [row.update(mood="text") for row in d["rows"]] and None,
    "a tensor": lambda d: None,
}


@pytest.mark.parametrize("key", UNKNOWN)
def test_what_a_newer_version_adds_is_ignored(run, key):
    tensors, before = load_state(run / "last.safetensors")
    more = {"other.weight": torch.ones(3)} if key == "a tensor" else {}
    rewrite(run / "last.safetensors", UNKNOWN[key], {**tensors, **more})
    tensors, after = load_state(run / "last.safetensors")
    assert after == before
    state = state_of_a_vae()
    state.restore(tensors, after)
    assert state.document() == before.to_document()


@pytest.mark.parametrize("path", ["stopped_early", "losses", "cursors", "scaler", "clock/seconds"])
def test_what_an_older_version_lacks_has_its_default(run, path):
    def remove(document):
        *above, key = path.split("/")
        del (document[above[0]] if above else document)[key]

    rewrite(run / "last.safetensors", remove)
    state = state_of_a_vae()
    state.restore(*load_state(run / "last.safetensors"))
    assert state.counters.epoch == len(state.rows) == 2


def test_a_column_that_an_older_version_lacks_is_empty(run):
    def remove(document):
        for row in (*document["rows"], document["best"]["metrics"]):
            del row["val_ssim"]

    rewrite(run / "last.safetensors", remove)
    _, state = load_state(run / "last.safetensors")
    assert [row["val_ssim"] for row in (*state.rows, state.best.metrics)] == [None] * 3


def state_of_a_vae():
    return fresh_state(registry.build("vae", registry.resolve_options("vae", {"width": 4})))


def test_nothing_in_the_folder_changes_where_a_state_is_invalid(run):
    rewrite(run / "last.safetensors", STATES["a row that can't be drawn"])
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "last.safetensors" in fails(1, "train", "vae", *TRAIN, "--runs", "mine", "--epochs", "3")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


TENSORS = {
    "a weight that is no number": ("model.encoder.0.weight", lambda value: value * float("nan")),
    "a moment without end": ("optimizer.exp_avg.encoder.0.weight", lambda value: value + float("inf")),
    "a square below zero": ("optimizer.exp_avg_sq.encoder.0.weight", lambda value: value - 1),
    "a moment of another shape": ("optimizer.exp_avg.encoder.0.weight", lambda value: value[:1]),
    "a weight of another type": ("model.encoder.0.weight", lambda value: value.double()),
    "a count of another type": ("model.encoder.1.num_batches_tracked", lambda value: value.float()),
    "steps of another shape": ("optimizer.step.encoder.0.weight", lambda value: value.expand(3).clone()),
    "sums without end": ("sums", lambda value: value + float("inf")),
    "sums of another shape": ("sums", lambda value: value[:2].clone()),
    "a moment missing": ("optimizer.exp_avg.encoder.0.weight", None),
    "sums missing": ("sums", None),
    "something more": ("optimizer.exp_avg.more", lambda value: torch.zeros(1)),
}


@pytest.mark.parametrize("change", TENSORS)
def test_tensors_that_do_not_fit_are_refused_with_a_hint(run, change):
    name, alter = TENSORS[change]
    tensors = load_file(run / "last.safetensors")
    value = tensors.pop(name, None)
    if alter is not None:
        tensors[name] = alter(value)
    rewrite(run / "last.safetensors", lambda d: None, tensors)
    message = fails(1, "train", "vae", *TRAIN, "--runs", "mine", "--epochs", "3")
    assert "last.safetensors does not fit this model" in message and "--restart begins the run again" in message


def test_a_state_of_another_precision_is_refused_with_a_hint(run):
    rewrite(run / "last.safetensors", lambda d: d.update(scaler={"scale": 1.0, "growth_factor": 2.0}))
    message = fails(1, "train", "vae", *TRAIN, "--runs", "mine", "--epochs", "3")
    assert "last.safetensors does not fit this model" in message and "--restart begins the run again" in message


def test_loss_scaling_is_restored_only_within_its_range():
    now = GradScaler("cpu").state_dict()
    validate_scaler({**now, "scale": 0.5, "_growth_tracker": 7}, now)
    validate_scaler({}, {})
    wrong = [{"scale": 0.0}, {"scale": "x"}, {"_growth_tracker": -1}, {"growth_interval": 1}, {"backoff_factor": 2.0}]
    for words in wrong:
        with pytest.raises(ValueError, match="loss scaling"):
            validate_scaler({**now, **words}, now)
    for scaling in ({}, {"scale": 1.0}):
        with pytest.raises(ValueError, match="loss scaling"):
            validate_scaler(scaling, now)


def test_sums_of_a_device_with_less_precision_are_restored(run):
    tensors, document = load_state(run / "last.safetensors")
    state = state_of_a_vae()
    state.restore({**tensors, "sums": torch.tensor([1.0, 2.0, 3.0])}, document)
    assert state.sums.tolist() == [1, 2, 3] and state.sums.dtype == torch.float64


def test_a_state_that_does_not_fit_changes_nothing(run):
    tensors, document = load_state(run / "last.safetensors")
    state = state_of_a_vae()
    before = {key: value.clone() for key, value in state.tensors().items()}
    tensors["sums"] = torch.full((3,), float("nan"), dtype=torch.float64)
    with pytest.raises(ValueError, match="sums has values that are not finite"):
        state.restore(tensors, document)
    after = state.tensors()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert state.counters.step == 0 and state.rows == []


@pytest.mark.parametrize("change", ["best figures of text", "best figures that are a word", "stopped by a word"])
def test_a_finished_run_with_an_invalid_document_is_refused(run, change):
    rewrite(run / "last.safetensors", STATES[change])
    assert "last.safetensors is damaged" in fails(1, "train", "vae", *TRAIN, "--runs", "mine")


def test_an_epoch_of_no_seconds_is_finished(run):
    rewrite(run / "last.safetensors", lambda d: d["clock"].update(batch=3, step=9, seconds=0.0))
    ok("train", "vae", *TRAIN, "--runs", "mine", "--epochs", "3")


def test_a_batch_beyond_the_epoch_begins_it_again(run):
    rewrite(run / "last.safetensors", lambda d: d["clock"].update(batch=7, step=99, seconds=1.0))
    ok("train", "vae", *TRAIN, "--runs", "mine", "--epochs", "3")


def test_a_hostile_config_is_refused_in_short_printable_lines(run):
    config = json.loads((run / "config.json").read_text())
    config["options"]["data"] = "\x1b[2J\nError: " + 10**5 * "x"
    (run / "config.json").write_text(json.dumps(config))
    message = fails(1, "train", "vae", *TRAIN, "--out", run)
    assert "\x1b" not in message and len(message) < 1000
