"""Metrics of sets in the pass over pairs, against features and formulas worked by hand."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from aecli.metrics.distribution_distances import frechet_distance, kernel_distance
from aecli.metrics.feature_networks import load_features
from aecli.progress import ignore
from tests.support.images import save_image
from tests.support.paired import crop
from tests.support.trained import fails, invoke, ok, ok_json

COUNT = 7


def noisy(pixels, deviation, seed):
    noise = np.random.default_rng(seed).normal(0, deviation, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures():
    """Of two sizes in turn, so that batches are not in the order of names."""
    truths = [crop(number, 48, 48 + 8 * (number % 2)) for number in range(COUNT)]
    return {"gt": truths} | {
        name: [noisy(pixels, deviation, seed) for seed, pixels in enumerate(truths)]
        for name, deviation in (("fine", 4), ("coarse", 40))
    }


@pytest.fixture(scope="module", autouse=True)
def folders(pictures, tmp_path_factory):
    place = tmp_path_factory.mktemp("sets")
    for name, images in pictures.items():
        for number, pixels in enumerate(images):
            save_image(place / name / f"{number}.png", pixels)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        yield


@cache
def network():
    return load_features("alex", torch.device("cpu"), ignore)


def vectors(images):
    found = [network().compute(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]) for pixels in images]
    return torch.cat(found).double().numpy()


@pytest.fixture(scope="module")
def embedded(pictures):
    return {name: vectors(images) for name, images in pictures.items()}


EVAL = ["eval", "--gt", "gt", "--pred", "fine", "--pred", "coarse"]


def test_figures_are_those_by_hand(embedded):
    found = ok_json(*EVAL, "--metrics", "fd-alex,psnr,kd-alex", "--batch-size", "2", "--workers", "2")
    truth = embedded["gt"]
    for result in found["results"]:
        prediction = embedded[result["name"]]
        value, interval = kernel_distance(truth, prediction, are_pairs=True)
        assert result["fd-alex"] == pytest.approx(frechet_distance(truth, prediction), rel=1e-4)
        assert result["kd-alex"]["value"] == pytest.approx(value, abs=1e-6)
        assert result["kd-alex"]["ci95"] == pytest.approx(interval, abs=1e-6)
    assert found["best"]["fd-alex"] == found["best"]["kd-alex"] == ["fine"]
    assert f"of {COUNT} predictions" in found["definitions"]["fd-alex"]
    assert any("mostly bias" in text for text in found["notices"])
    assert len(found["versions"]["alex_features_sha256"]) == 64


def test_a_border_is_cut_off_before(pictures):
    found = ok_json(*EVAL[:5], "--metrics", "fd-alex", "--crop-border", "5")["results"][0]
    truth, prediction = (vectors([pixels[5:-5, 5:-5] for pixels in pictures[name]]) for name in ("gt", "fine"))
    assert found["fd-alex"] == pytest.approx(frechet_distance(truth, prediction), rel=1e-4)


def test_a_set_against_itself():
    found = ok_json("eval", "--gt", "gt", "--pred", "same=gt", "--metrics", "fd-alex,kd-alex")["results"][0]
    assert found["fd-alex"] == pytest.approx(0, abs=1e-6)
    assert found["kd-alex"]["value"] < 0, "an image and its own copy count as a pair"


def test_the_table_and_the_page_show_them(tmp_path):
    shown = ok(*EVAL, "--metrics", "psnr,fd-alex,kd-alex", "--report", tmp_path / "page.html").stdout
    head, first = shown.splitlines()[:2]
    assert head.split() == ["PSNR", "↑", "FD-ALEX", "↓", "KD-ALEX", "↓"] and first.count("*") == 3
    assert max(map(len, shown.split("\n\n")[0].splitlines())) <= 80
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert first.split()[2] in page and "FD-ALEX ↓" in page
    table = ok(*EVAL, "--metrics", "kd-alex", "--format", "csv").stdout
    assert table.splitlines()[0] == "name,kd-alex_value,kd-alex_ci95_low,kd-alex_ci95_high"


def test_unreadable_images_are_in_neither_set(pictures, embedded, tmp_path):
    for number, pixels in enumerate(pictures["fine"]):
        save_image(tmp_path / "some" / f"{number}.png", pixels)
    content = (tmp_path / "some/4.png").read_bytes()
    (tmp_path / "some/4.png").write_bytes(content[: len(content) // 2])
    args = ["eval", "--gt", "gt", "--pred", tmp_path / "some", "--metrics", "fd-alex", "--on-mismatch", "skip"]
    found = json.loads(invoke(*args, "--json").stdout)
    truth, prediction = (np.delete(embedded[name], 4, axis=0) for name in ("gt", "fine"))
    assert found["n"] == COUNT - 1
    assert found["results"][0]["fd-alex"] == pytest.approx(frechet_distance(truth, prediction), rel=1e-4)


@pytest.mark.parametrize("option", ["--report page.html", "--per-image each.csv"])
def test_what_needs_values_per_image_refuses_sets_alone(option):
    assert "values per image" in fails(2, *EVAL, "--metrics", "fd-alex", *option.split())


def test_sets_of_too_few_images_are_refused(pictures, tmp_path):
    for name in ("gt", "fine"):
        for number in range(2):
            save_image(tmp_path / name / f"{number}.png", pictures[name][number])
    args = ["eval", "--gt", tmp_path / "gt", "--pred", tmp_path / "fine", "--metrics"]
    assert "at least 3" in fails(1, *args, "psnr,kd-alex")


def test_without_inceptions_weights_nothing_is_measured(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    monkeypatch.setenv("AECLI_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert "--metrics kid needs" in fails(1, *EVAL, "--metrics", "kid,psnr", "--per-image", tmp_path / "each.csv")
    assert not Path(tmp_path / "each.csv").exists()
