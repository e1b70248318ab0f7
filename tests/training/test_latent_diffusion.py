"""The models kl and vq through the command line: runs that go on, several processes, and trained models at work."""

import pytest

from tests.support.ranks import run_ranks
from tests.support.trained import assert_same_run, fails, ok, png, pngs, rows, write_images
from tests.training.test_ranks import assert_close_runs

NARROW = ["-o", "block_out_channels=8,16", "-o", "norm_num_groups=4"]
TRAIN = [
    "--recipe",
    "report",
    "--data",
    "images",
    "--image-size",
    "16",
    "--batch-size",
    "4",
    "--lr",
    "1e-3",
    "--compile",
    "off",
    *NARROW,
]
OWN = {"kl": ["-o", "latent_channels=4"], "vq": ["-o", "codebook_size=16"]}


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "images", height=24, width=30)
    return tmp_path


@pytest.mark.parametrize("name", OWN)
def test_a_run_goes_on_bit_for_bit_and_its_model_works(place, name):
    options = ["train", name, *TRAIN, *OWN[name], "--fit", "random-crop"]
    ok(*options, "--epochs", "2", "--out", "whole")
    ok(*options, "--epochs", "1", "--out", "resumed")
    ok(*options, "--epochs", "2", "--out", "resumed")
    assert_same_run(place / "whole", place / "resumed")
    columns = {"kl": ["train_kl"], "vq": ["train_codebook", "train_commitment", "train_codebook_usage"]}[name]
    assert all(float(row[column]) > 0 for row in rows(place / "whole") for column in columns)

    ok("reconstruct", "--model", "whole", "--data", "images", "--native", "--out", "native")
    assert len(pngs(place / "native")) == 12 and png(place / "native/i1.png").shape == (24, 30, 3)
    assert "hint: use --prior gaussian" in fails(1, "sample", "--model", "whole", "--n", "2", "--prior", "normal")


def test_a_dry_run_and_options_of_other_models(place):
    assert "parameters" in ok("train", "kl", *TRAIN, "--dry-run").stdout
    assert "no such option" in fails(2, "train", "kl", *TRAIN, "--width", "8")
    assert "multiple of 2" in fails(2, "train", "kl", *TRAIN, "--image-size", "17")


@pytest.mark.parametrize(
    "name", [pytest.param("kl", marks=pytest.mark.slow), pytest.param("vq", marks=pytest.mark.soak)]
)
def test_two_processes_make_the_run_of_one(place, name):
    made = []
    for size in (1, 2):
        arguments = ["train", name, *TRAIN, *OWN[name], "--epochs", "2", "--out", f"of{size}", "--precision", "fp32"]
        statuses, _, stderr = run_ranks(place, arguments, size, 0)
        assert statuses == [0] * size, stderr
        made.append(place / f"of{size}")
    if name == "kl":  # how much of a codebook is used is counted in each process's part of a batch
        assert_close_runs(*made)
