"""`aecli sample --prior auto`: the prior whose samples are nearest to held-out images, by measurement."""

import json

import pytest

from aecli.sampling import prior_scores
from tests.support.flows import OPTIONS
from tests.support.trained import NAMES, TINY, invoke, ok, ok_json

DRAWN = 16


@pytest.fixture
def measured(own, monkeypatch):
    """A run with 12 validation images, which are enough here, and few samples."""
    monkeypatch.setattr(prior_scores, "LEAST_IMAGES", len(NAMES))
    monkeypatch.setattr(prior_scores, "LEAST_SAMPLES", DRAWN)
    monkeypatch.setattr(prior_scores, "SAMPLES", DRAWN)
    ok("train", "vae", "--data", "images", "--val-data", "images", *TINY, "--epochs", "1", "--out", "mine", "--quiet")
    return own


def told():
    result = invoke("sample", "--model", "mine", "--n", "1", "--out", "s.png")
    assert result.exit_code == 0, result.stderr
    return [line for line in result.stderr.splitlines() if "kd-alex" in line]


def test_it_is_the_nearest_as_eval_measures_it(measured):
    (notice,) = told()
    kept = json.loads((measured / "mine/prior-scores.json").read_text())
    assert (kept["images"], kept["samples"]) == (len(NAMES), DRAWN)
    for name in ("normal", "gaussian", "mixture"):
        ok("sample", "--model", "mine", "--prior", name, "--n", DRAWN, "--seed", "0", "--out", name, "--quiet")
    sets = [part for name in kept["distances"] for part in ("--samples", f"{name}={name}")]
    document = ok_json("eval", "--gt", "images", "--features", "alex", *sets)
    by_eval = {each["name"]: each["kd-alex"]["value"] for each in document["results"]}
    assert kept["distances"] == pytest.approx(by_eval, abs=1e-6)
    best = min(by_eval, key=by_eval.__getitem__)
    assert ok_json("sample", "--model", "mine", "--n", "1", "--out", "s.png")["prior"] == best
    assert f"sampling from {best}" in notice and all(f"{value:.4f}" in notice for value in by_eval.values())


def test_it_is_measured_once_and_again_where_something_changed(measured):
    first = told()
    scores = measured / "mine/prior-scores.json"
    before = scores.stat().st_mtime_ns
    assert told() == first and scores.stat().st_mtime_ns == before
    scores.write_text("{")
    assert told() == first
    ok("train", "prior", "--model", "mine", "--width", "32", *OPTIONS, "--epochs", "1", "--batch-size", "4", "--quiet")
    told()
    assert json.loads(scores.read_text())["distances"].keys() == {"normal", "gaussian", "mixture", "flow"}


def test_without_enough_images_nothing_is_measured(measured, monkeypatch):
    monkeypatch.setattr(prior_scores, "LEAST_IMAGES", len(NAMES) + 1)
    assert told() == [] and not (measured / "mine/prior-scores.json").exists()
