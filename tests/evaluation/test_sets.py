"""`aecli eval --samples`: against features and formulas worked by hand, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from aecli.cli.tables import print_sets
from aecli.configs import EvalConfig
from aecli.errors import ConfigError, DataError, WeightsError
from aecli.evaluation.sets import evaluate_sets
from aecli.metrics import feature_networks
from aecli.metrics.distribution_distances import frechet_distance, kernel_distance, manifold, nearest_distances
from aecli.metrics.feature_networks import load_features
from aecli.progress import ignore
from tests.support.ranks import run_ranks
from tests.support.trained import fails, invoke, ok, ok_json

ROOT = Path(__file__).parent.parent.parent
SIDE = 64
CPU = torch.device("cpu")


def pictures(folder, count, seed, side=SIDE, blur=8):
    """Blots of colour, larger ones for a larger blur: sets that differ in kind."""
    folder.mkdir()
    generator = np.random.default_rng(seed)
    for number in range(count):
        small = generator.integers(0, 255, (side // blur, side // blur, 3), dtype=np.uint8)
        Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(folder / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    place = tmp_path_factory.mktemp("sets")
    pictures(place / "real", 12, 1)
    pictures(place / "alike", 13, 2)
    pictures(place / "other", 9, 3, blur=32)
    pictures(place / "train", 16, 4)
    (place / "copies").mkdir()
    for number in range(8):
        shutil.copy(place / f"train/{number:03d}.png", place / "copies")
    return place


@pytest.fixture(autouse=True)
def there(sets, monkeypatch):
    monkeypatch.chdir(sets)
    monkeypatch.setenv("AECLI_WEIGHTS", str(sets / "no-weights"))
    return sets


def features(folder):
    files = sorted(folder.glob("*.png"))
    stack = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    return load_features("alex", CPU, ignore).compute(torch.from_numpy(stack).permute(0, 3, 1, 2)).double().numpy()


def test_figures_are_those_by_hand():
    found = ok_json("eval", "--gt", "real", "--samples", "alike", "--samples", "far=other", "--train", "train")
    assert (found["features"], found["n"], found["size"]) == ("alex", 12, [SIDE, SIDE])
    truth, train = features(Path("real")), features(Path("train"))
    for result, folder in zip(found["results"], ("alike", "other"), strict=True):
        drawn = features(Path(folder))
        value, interval = kernel_distance(truth, drawn)
        assert result["n"] == len(drawn)
        assert result["kd-alex"]["value"] == pytest.approx(value, abs=1e-5)
        assert result["kd-alex"]["ci95"] == pytest.approx(interval, abs=1e-5)
        assert result["fd-alex"] == pytest.approx(frechet_distance(truth, drawn), rel=1e-3)
        shares = vars(manifold(truth, drawn))
        assert {name: result[name] for name in shares} == pytest.approx(shares, abs=0.05)
        nearest, held_out = (float(np.median(nearest_distances(each, train))) for each in (drawn, truth))
        assert result["memorised"] == pytest.approx(
            {"samples": nearest, "held_out": held_out, "ratio": nearest / held_out}, rel=1e-3
        )
    alike, far = found["results"]
    assert [alike["name"], far["name"]] == ["alike", "far"]
    assert far["kd-alex"]["value"] > 5 * abs(alike["kd-alex"]["value"])
    assert far["fd-alex"] > alike["fd-alex"] and far["coverage"] < alike["coverage"]
    assert "not the Inception" in found["definitions"]["features"]


def test_copies_of_the_training_images_show():
    found = ok_json("eval", "--gt", "real", "--samples", "copies", "--samples", "alike", "--train", "train")
    copies, alike = (result["memorised"]["ratio"] for result in found["results"])
    assert copies < 0.01
    assert 0.7 < alike < 1.4


def test_without_training_images_there_is_no_figure_of_memorising(capsys):
    report = evaluate_sets(EvalConfig(gt="real", samples=("alike",)))
    assert [result["memorised"] for result in report.to_json()["results"]] == [None]
    print_sets(report)
    assert "kd-alex" in (shown := capsys.readouterr().out) and "nearest" not in shown


def test_ground_truth_that_was_trained_on_gives_a_notice():
    result = invoke("eval", "--gt", "train", "--samples", "alike", "--train", "train", "--json")
    assert result.exit_code == 0, result.output
    assert "half of --gt is in --train" in result.stderr
    assert json.loads(result.stdout)["results"][0]["memorised"]["ratio"] is None


def test_the_table_fits_eighty_columns():
    shown = ok("eval", "--gt", "real", "--samples", "alike", "--samples", "other", "--train", "train").stdout
    table = shown.split("\n\n")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert "kd-alex" in table[0] and "nearest" in table[0]
    assert [line.split()[0] for line in table[1::2]][:2] == ["alike", "other"]


def test_batches_workers_and_processes_change_nothing(there, monkeypatch):
    def figures(found):
        return [(each["kd-alex"]["value"], each["fd-alex"], each["coverage"]) for each in found["results"]]

    args = ["eval", "--gt", "real", "--samples", "alike", "--samples", "other"]
    whole = figures(ok_json(*args))
    for options in (["--batch-size", "5", "--workers", "1"], ["--batch-size", "32", "--workers", "3"]):
        for one, other in zip(figures(ok_json(*args, *options)), whole, strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
    monkeypatch.chdir(ROOT)  # whence processes import what they run
    statuses, printed, _ = run_ranks(there, [*args, "--json"], 2)
    assert statuses == [0, 0]
    for one, other in zip(figures(json.loads(printed)), whole, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_real_images_are_brought_to_the_samples_size(tmp_path):
    pictures(tmp_path / "large", 10, 5, side=96)
    (tmp_path / "small").mkdir()
    for file in (tmp_path / "large").glob("*.png"):
        with Image.open(file) as opened:
            opened.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(tmp_path / "small" / file.name)
    of_large = ok_json("eval", "--gt", tmp_path / "large", "--samples", "alike")["results"][0]
    of_small = ok_json("eval", "--gt", tmp_path / "small", "--samples", "alike")["results"][0]
    assert of_large["kd-alex"]["value"] == pytest.approx(of_small["kd-alex"]["value"], abs=1e-6)


def test_samples_of_differing_sizes_are_brought_to_the_networks(tmp_path):
    pictures(tmp_path / "large", 8, 5, side=96)
    args = ["eval", "--gt", "real", "--samples", "alike", "--samples", tmp_path / "large"]
    result = invoke(*args, "--json")
    assert "2 sizes" in result.stderr and "resized to 224x224" in result.stderr
    found = json.loads(result.stdout)
    assert found["size"] == [224, 224] and "All images are resized to 224x224" in found["definitions"]["size"]
    for name, source in (("real", "real"), ("alike", "alike"), ("large", tmp_path / "large")):
        (tmp_path / f"as-{name}").mkdir()
        for file in Path(source).glob("*.png"):
            with Image.open(file) as opened:
                opened.resize((224, 224), Image.Resampling.BILINEAR).save(tmp_path / f"as-{name}" / file.name)
    by_hand = kernel_distance(features(tmp_path / "as-real"), features(tmp_path / "as-large"))[0]
    assert found["results"][1]["kd-alex"]["value"] == pytest.approx(by_hand, abs=1e-5)


def test_samples_inside_the_ground_truth_are_left_out_of_it(tmp_path):
    shutil.copytree("real", tmp_path / "real")
    shutil.copytree("alike", tmp_path / "real/new")
    result = invoke("eval", "--gt", tmp_path / "real", "--samples", tmp_path / "real/new", "--json")
    assert json.loads(result.stdout)["n"] == 12 and "13 images in new/ left out" in result.stderr


def test_what_reading_did_is_told(tmp_path):
    shutil.copytree("alike", tmp_path / "some")
    pixels = np.asarray(Image.open(tmp_path / "some/003.png").convert("RGBA")).copy()
    pixels[..., 3] = 128
    Image.fromarray(pixels).save(tmp_path / "some/003.png")
    (tmp_path / "some/x.heic").write_bytes(b"x")
    result = invoke("eval", "--gt", "real", "--samples", tmp_path / "some", "--background", "black", "--json")
    assert "1 image with transparency laid over black" in result.stderr and ".heic" in result.stderr
    found = json.loads(result.stdout)
    assert found["conversions"] == {
        "real": {}, str(tmp_path / "some"): {"background": {"images": 1, "names": ["003.png"]}}
    }  # fmt: skip
    assert "black" in found["definitions"]["reading"]
    laid = np.rint(pixels[..., :3] * (128 / 255)).astype(np.uint8)
    Image.fromarray(laid).save(tmp_path / "some/003.png")
    again = ok_json("eval", "--gt", "real", "--samples", tmp_path / "some")
    assert again["results"][0]["kd-alex"]["value"] == pytest.approx(found["results"][0]["kd-alex"]["value"], abs=1e-4)


def test_unreadable_images_are_named_or_left_out(tmp_path):
    shutil.copytree("alike", tmp_path / "some")
    (tmp_path / "some/003.png").write_bytes(b"no image")
    assert "003.png" in fails(1, "eval", "--gt", "real", "--samples", tmp_path / "some")
    result = invoke("eval", "--gt", "real", "--samples", tmp_path / "some", "--on-mismatch", "skip", "--json")
    assert result.exit_code == 0 and "003.png" in result.stderr
    found = json.loads(result.stdout)
    assert found["results"][0]["n"] == 12 and list(found["unreadable"])[0].endswith("some/003.png")


def test_too_few_images_are_an_error(tmp_path):
    pictures(tmp_path / "few", 5, 5)
    assert "too few images that can be read (5)" in fails(1, "eval", "--gt", "real", "--samples", tmp_path / "few")
    for file in list(pictures(tmp_path / "six", 6, 5).iterdir())[:1]:
        file.write_bytes(b"no image")
    assert "too few" in fails(1, "eval", "--gt", "real", "--samples", tmp_path / "six", "--on-mismatch", "skip")


@pytest.mark.parametrize(
    "wrong",
    [
        "--samples alike --pred alike", "--samples alike --per-image x.csv", "--samples alike --report x.html",
        "--samples alike --metrics psnr", "--samples alike --on-mismatch resize", "--samples alike --features vgg",
        "--samples a=alike --samples a=other", "--pred alike --train train", "--pred alike --features alex", "",
    ],
)  # fmt: skip
def test_wrong_use(wrong):
    fails(2, "eval", "--gt", "real", *wrong.split())


# Inception


def test_auto_takes_inception_only_where_all_of_it_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv("AECLI_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    assert load_features("auto", CPU, ignore).name == "alex"
    with pytest.raises(WeightsError, match=r"weights-inception-2015-12-05-6726825d\.pth.*\nhint: download https"):
        load_features("inception", CPU, ignore)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(feature_networks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"(?s)hint: .*aecli\[fid\]"):
        load_features("inception", CPU, ignore)


def test_a_file_that_is_not_what_its_name_promises_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")
    monkeypatch.setenv("AECLI_WEIGHTS", str(tmp_path))
    torch.save({}, tmp_path / feature_networks.INCEPTION_FILE)
    with pytest.raises(WeightsError, match="damaged"):
        load_features("inception", CPU, ignore)


def test_the_python_call_gives_the_same(there):
    found = evaluate_sets(EvalConfig(gt="real", samples=("alike",)))
    assert found.to_json()["results"] == ok_json("eval", "--gt", "real", "--samples", "alike")["results"]
    with pytest.raises(ConfigError):
        EvalConfig(gt="real")
    with pytest.raises(DataError):
        evaluate_sets(EvalConfig(gt="nowhere", samples=("alike",)))
