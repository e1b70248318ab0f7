"""Commands when all goes well: what they write, print and return."""

import csv
import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.support.trained import EPOCHS, SIZE, TRAIN, VAL, invoke, ok, ok_json, pngs, write_images

RUN_FILES = ["config.json", "curves.png", "images.csv", "last.safetensors", "metrics.csv", "model.safetensors",
             "previews/epoch-0001.png", "previews/epoch-0002.png"]  # fmt: skip
CUSTOM = "examples.custom_model:ResidualAE"


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def digests(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files(folder)}


def read_rows(run):
    return list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))


# train


@pytest.mark.draws
def test_train_writes_a_run_folder_and_names_it(tmp_path, monkeypatch):
    write_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    result = ok("train", "vae", *TRAIN)
    for picture in ("curves.png", *RUN_FILES[-2:]):
        with Image.open(tmp_path / "runs/vae" / picture) as opened:
            opened.verify()
    assert files(tmp_path / "runs") == [f"vae/{name}" for name in RUN_FILES]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "runs"]
    assert "runs/vae finished: 2 epochs" in result.stdout
    assert "runs/vae/model.safetensors" in result.stdout
    assert "9 + 3 images" in result.stderr and "227,479 parameters" in result.stderr
    rows = read_rows(tmp_path / "runs/vae")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [row["step"] for row in rows] == ["3", "6"]


def test_config_json_has_every_resolved_option(trained):
    config = json.loads((trained / "runs/vae/config.json").read_text())
    options = config["options"]
    assert config["model"] == {"name": "vae", "options": {"width": 4, "latent_dim": None, "beta": 2.5e-5}}
    assert (options["epochs"], options["image_size"], options["batch_size"], options["seed"]) == (EPOCHS, SIZE, 3, 1)
    assert options["data"] == str((trained / "images").resolve())
    assert (config["split"]["train"], config["split"]["val"]) == (9, 3)
    assert config["data"]["images"] == 12
    assert {"aecli", "python", "torch"} <= set(config["versions"])
    assert {"device", "precision"} <= set(config["placement"])


def test_train_json_is_one_document(workplace):
    document = ok_json("train", "ae", *TRAIN)
    assert (document["run"], document["epochs"], document["interrupted"]) == ("runs/ae", 2, False)
    assert (document["was_finished"], document["stopped_early"]) == (False, False)
    rows = read_rows(workplace / "runs/ae")
    best = min(rows, key=lambda row: float(row["val_loss"]))
    assert document["best_epoch"] == int(best["epoch"])
    assert document["best"]["val_psnr"] == float(best["val_psnr"])
    assert all(row["train_kl"] == "" for row in rows)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_finished_run_says_so_and_stays_as_it_is(trained, as_json):
    before = digests((trained / "runs").resolve())
    result = invoke("train", "vae", *TRAIN, *(["--json"] if as_json else []))
    assert result.exit_code == 0
    if as_json:
        assert json.loads(result.stdout)["was_finished"] is True
    else:
        assert "runs/vae was finished already" in result.stdout and "--epochs" in result.stdout
    assert digests((trained / "runs").resolve()) == before


def test_other_options_begin_another_folder_and_say_so(workplace):
    ok("train", "vae", *TRAIN)
    before = digests(workplace / "runs/vae")
    result = ok("train", "vae", *TRAIN, "--lr", "1e-3")
    assert files(workplace / "runs/vae-2") == RUN_FILES
    assert digests(workplace / "runs/vae") == before
    note = next(line for line in result.stderr.splitlines() if line.startswith("Note: "))
    assert all(word in note for word in ("runs/vae", "--lr", "0.0001", "0.001", "runs/vae-2"))
    assert "runs/vae-2" in result.stdout
    assert "vae was finished already" in ok("train", "vae", *TRAIN).stdout
    assert "vae-2 was finished already" in ok("train", "vae", *TRAIN, "--lr", "1e-3").stdout


def test_epochs_may_grow_in_the_same_folder(workplace):
    ok("train", "ae", *TRAIN)
    first = (workplace / "runs/ae/metrics.csv").read_text()
    result = ok("train", "ae", *TRAIN, "--epochs", "3")
    assert "resuming runs/ae after epoch 2" in result.stderr
    assert (workplace / "runs/ae/metrics.csv").read_text().startswith(first)
    assert not (workplace / "runs/ae-2").exists()
    assert json.loads((workplace / "runs/ae/config.json").read_text())["options"]["epochs"] == 3


def test_restart_begins_the_run_again(workplace):
    ok("train", "ae", *TRAIN)
    (workplace / "runs/ae/previews/epoch-0009.png").write_text("of longer training")
    (workplace / "runs/ae/notes.txt").write_text("mine")
    result = ok("train", "ae", *TRAIN, "--epochs", "1", "--restart")
    assert "restarting the run in runs/ae" in result.stderr
    assert files(workplace / "runs/ae") == sorted([*RUN_FILES[:-1], "notes.txt"])
    assert len(read_rows(workplace / "runs/ae")) == 1


def test_flag_and_option_give_the_same_run(trained):
    spelled = [arg if arg != "--width" else "-o" for arg in TRAIN]
    spelled[spelled.index("-o") + 1] = "width=4"
    assert "runs/vae was finished already" in ok("train", "vae", *spelled).stdout


# A model of one's own


def test_the_example_model_trains_and_reconstructs_from_the_command_line(workplace):
    example = Path(__file__).parent.parent.parent / "examples/custom_model.py"
    assert len(example.read_text().splitlines()) < 60
    options = [arg for arg in TRAIN if arg not in ("--width", "4")]
    document = ok_json("train", CUSTOM, *options, "-o", "channels=4", "--latent-dim", "2")
    assert document["run"] == "runs/residualae"
    assert json.loads((workplace / "runs/residualae/config.json").read_text())["model"] == {
        "name": CUSTOM,
        "options": {"channels": 4, "latent_dim": 2},
    }
    assert ok_json("reconstruct", "--model", CUSTOM)["out"] == "reconstructions/residualae"
    assert pngs(workplace / "reconstructions/residualae") == VAL
    rows = ok_json("grid", "--model", CUSTOM, "--n", "2")["rows"]
    assert rows == ["Ground Truth", "ResidualAE"]


def test_size_multiple_is_the_models_own(workplace):
    options = [arg for arg in TRAIN if arg not in ("--width", "4")]
    assert ok_json("train", CUSTOM, *options, "-o", "channels=2", "--image-size", "24", "--epochs", "1")


# models


def test_models_shows_the_reports_figures_and_the_runs(trained):
    result = ok("models")
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["ae", "39,076,163", "1024×8×8", "1/3", "23.9", "aecli.models.ae:AE"] in lines
    assert ["vae", "57,952,579", "1024×8×8", "1/3", "26.4", "aecli.models.vae:VAE"] in lines
    runs = [line[0] for line in lines if line and line[0].startswith("runs/")]
    assert runs == ["runs/ae", "runs/vae"]  # the newest first
    assert "training" in result.stdout and "cpu" in result.stdout
    assert result.stderr == ""


def test_models_json(trained):
    document = ok_json("models", "--runs", "runs")
    figures = {model["name"]: (model["parameters"], model["latent_shape"]) for model in document["models"]}
    assert figures["ae"] == (39_076_163, [1024, 8, 8]) and figures["vae"] == (57_952_579, [1024, 8, 8])
    assert figures["prior"][1] == [64, 8, 8]
    kept = {model["name"]: model["kept"] for model in document["models"]}
    assert kept["vae"] == {"numbers": 65536, "share": 1 / 3, "bits_per_pixel": None} and kept["prior"] is None
    run = next(run for run in document["runs"] if run["model"] == "vae")
    best = [json.loads((trained / "runs/vae/config.json").read_text())["model"]["options"], SIZE, EPOCHS]
    assert [run["options"], run["image_size"], run["epochs"]] == best
    assert run["kept"]["share"] == 1 / 48
    assert set(document["inference"]) == {"device", "precision", "memory_format"}
    assert document["inference"]["precision"] == "fp32"


def test_models_without_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "39,076,163" in ok("models").stdout
    assert ok_json("models")["runs"] == []
    assert list(tmp_path.iterdir()) == []
