import csv
import io
import json
import math
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.data import astronaut, coffee
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import aecli
from aecli.configs import EvalConfig
from aecli.errors import ConfigError, DataError, DeviceError, OutputError, WeightsError
from aecli.evaluation import measuring, paired
from aecli.metrics.base import LoadedMetric
from aecli.metrics.registry import BUILDERS
from aecli.metrics.statistics import bootstrap_means
from aecli.progress import Notice, Progress

PHOTO = np.concatenate([astronaut()[:400, :400], coffee()[:400, :400]], axis=1)


def crop(index, height=64, width=72):
    top, left = 37 * index % 300, 101 * index % 700
    return PHOTO[top : top + height, left : left + width]


def save(folder, name, pixels, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def read(path):
    return np.array(Image.open(path).convert("RGB"))


@pytest.fixture
def sources(tmp_path):
    """Six images of two sizes, and copies of them as JPEGs of quality 10 and 60."""
    for index in range(6):
        pixels = crop(index) if index % 3 else crop(index, 48, 40)
        save(tmp_path / "gt", f"part/{index}.png", pixels)
        save(tmp_path / "low", f"part/{index}.jpg", pixels, quality=10)
        save(tmp_path / "high", f"part/{index}.jpg", pixels, quality=60)
    return tmp_path


def run(folder, *pred, gt="gt", listen=None, **options):
    predictions = tuple(f"{name}={folder / name}" for name in pred)
    config = EvalConfig(gt=str(folder / gt), pred=predictions, workers=2, device="cpu", **options)
    return paired.evaluate(config, listen or (lambda report: None))


def reject_constant(name):
    raise AssertionError(f"{name} is no strict JSON")


def as_json(report):
    return json.loads(json.dumps(report.to_json(), allow_nan=False), parse_constant=reject_constant)


@pytest.fixture
def lpips_by_hand(lpips_references):
    network = lpips_references[0]["alex"]

    def distance(a, b):
        pair = [torch.from_numpy(each).permute(2, 0, 1)[None] / 127.5 - 1 for each in (a, b)]
        with torch.no_grad():
            return network(*pair).item()

    return distance


def ssim_by_hand(a, b):
    return structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1
    )


class TestNumbers:
    def test_a_low_quality_copy_by_hand(self, sources, lpips_by_hand):
        files = [f"part/{index}" for index in range(6)]
        pairs = [(read(sources / "gt" / f"{f}.png"), read(sources / "low" / f"{f}.jpg")) for f in files]
        expected = {
            "psnr": np.array([peak_signal_noise_ratio(*pair) for pair in pairs]),
            "ssim": np.array([ssim_by_hand(*pair) for pair in pairs]),
            "lpips": np.array([lpips_by_hand(*pair) for pair in pairs]),
        }
        found = as_json(run(sources, "low", per_image=sources / "each.csv"))
        assert found["n"] == 6
        assert found["unpaired"] == found["comparisons"] == []
        (result,) = found["results"]
        assert result["name"] == "low"
        for name, tolerance in (("psnr", 1e-9), ("ssim", 1e-6), ("lpips", 1e-5)):
            assert result[name]["mean"] == pytest.approx(expected[name].mean(), abs=tolerance)
            assert result[name]["median"] == pytest.approx(np.median(expected[name]), abs=tolerance)
            assert result[name]["ci95"] == pytest.approx(bootstrap_means(expected[name][:, None])[0], abs=tolerance)
        mean_mse = np.mean([np.mean((a.astype(float) - b) ** 2) for a, b in pairs])
        assert result["psnr"]["pooled"] == pytest.approx(10 * math.log10(255**2 / mean_mse))
        assert result["psnr"]["identical"] == 0
        assert set(result["ssim"]) == set(result["lpips"]) == {"mean", "ci95", "median"}
        rows = list(csv.DictReader(io.StringIO((sources / "each.csv").read_text())))
        assert list(rows[0]) == ["name", "prediction", "psnr", "ssim", "lpips"]
        assert [(row["name"], row["prediction"]) for row in rows] == [(f"{file}.png", "low") for file in files]
        for name in expected:
            assert [float(row[name]) for row in rows] == pytest.approx(expected[name].tolist(), abs=1e-5)

    def test_a_folder_against_itself(self, sources):
        report = run(sources, "gt", per_image=sources / "each.csv")
        (result,) = as_json(report)["results"]
        assert result["psnr"] == {"mean": None, "ci95": None, "median": None, "pooled": None, "identical": 6}
        assert result["ssim"]["mean"] == pytest.approx(1, abs=1e-12)
        assert result["lpips"]["mean"] == 0
        assert report.results[0].scores["psnr"].median == math.inf
        rows = list(csv.DictReader(io.StringIO((sources / "each.csv").read_text())))
        assert [row["psnr"] for row in rows] == ["inf"] * 6

    def test_identical_images_are_counted_and_left_out(self, sources):
        for index in (0, 1):
            shutil.copy(sources / "gt" / "part" / f"{index}.png", sources / "low" / "part")
            (sources / "low" / "part" / f"{index}.jpg").unlink()
        (result,) = as_json(run(sources, "low", metrics=("psnr",)))["results"]
        pairs = [(read(sources / f"gt/part/{i}.png"), read(sources / f"low/part/{i}.jpg")) for i in range(2, 6)]
        expected = [peak_signal_noise_ratio(*pair) for pair in pairs]
        assert result["psnr"]["identical"] == 2
        assert result["psnr"]["mean"] == pytest.approx(np.mean(expected))
        assert result["psnr"]["ci95"] == pytest.approx(bootstrap_means(np.array(expected)[:, None])[0])
        assert result["psnr"]["median"] == pytest.approx(np.median([*expected, math.inf, math.inf]))
        mean_mse = np.mean([np.mean((a.astype(float) - b) ** 2) for a, b in pairs]) * 4 / 6
        assert result["psnr"]["pooled"] == pytest.approx(10 * math.log10(255**2 / mean_mse))
        assert result["ssim"] is None
        assert result["lpips"] is None

    def test_one_pair_has_a_mean_and_no_interval(self, tmp_path):
        save(tmp_path / "gt", "a.png", crop(0))
        save(tmp_path / "ae", "a.png", crop(1))
        report = as_json(run(tmp_path, "ae"))
        assert report["n"] == 1
        for name in ("psnr", "ssim", "lpips"):
            assert report["results"][0][name]["ci95"] is None
            assert report["results"][0][name]["mean"] == report["results"][0][name]["median"]

    def test_several_predictions_get_the_numbers_of_each_alone(self, sources):
        both = as_json(run(sources, "low", "high"))
        assert both["results"] == [as_json(run(sources, name))["results"][0] for name in ("low", "high")]
        (versus,) = both["comparisons"]
        assert (versus["a"], versus["b"]) == ("low", "high")
        low, high = both["results"]
        for name in ("psnr", "ssim", "lpips"):
            assert versus[name]["mean_difference"] == pytest.approx(low[name]["mean"] - high[name]["mean"])
            assert (versus[name]["wins_a"], versus[name]["wins_b"], versus[name]["ties"]) == (0, 6, 0)
            assert versus[name]["ci95"][0] < versus[name]["mean_difference"] < versus[name]["ci95"][1]

    @pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 2}, {"batch_size": 64}])
    def test_batches_do_not_change_the_numbers(self, sources, options):
        run(sources, "low", per_image=sources / "a.csv")
        run(sources, "low", per_image=sources / "b.csv", **options)
        rows = [list(csv.reader(io.StringIO((sources / name).read_text()))) for name in ("a.csv", "b.csv")]
        for one, other in zip(*rows, strict=True):
            assert one[:2] == other[:2]
        values = [[float(cell) for row in table[1:] for cell in row[2:]] for table in rows]
        assert values[0] == pytest.approx(values[1], abs=1e-6)

    def test_a_bound_on_pixels_does_not_change_the_numbers(self, sources, monkeypatch):
        expected = as_json(run(sources, "low"))["results"][0]
        monkeypatch.setattr(measuring, "CPU_BATCH_PIXELS", 48 * 40)
        found = as_json(run(sources, "low"))["results"][0]
        for name in ("psnr", "ssim", "lpips"):
            assert found[name]["mean"] == pytest.approx(expected[name]["mean"], abs=1e-6)
            assert found[name]["ci95"] == pytest.approx(expected[name]["ci95"], abs=1e-6)

    @pytest.mark.parametrize("workers", [1, 3, 8])
    def test_workers_do_not_change_a_bit_of_the_numbers(self, sources, workers):
        tables = []
        for name, count in (("a.csv", 2), ("b.csv", workers)):
            config = EvalConfig(
                gt=str(sources / "gt"), pred=(str(sources / "low"),), per_image=sources / name, batch_size=2,
                workers=count, device="cpu",
            )  # fmt: skip
            paired.evaluate(config)
            tables.append((sources / name).read_text())
        assert tables[0] == tables[1]

    def test_threads_are_given_back(self, sources):
        before = torch.get_num_threads()
        run(sources, "low", metrics=("psnr",))
        assert torch.get_num_threads() == before

    def test_options_reach_the_metrics(self, sources):
        found = as_json(run(sources, "low", metrics=("ssim", "ssim"), ssim_window="uniform"))
        pairs = [(read(sources / f"gt/part/{i}.png"), read(sources / f"low/part/{i}.jpg")) for i in range(6)]
        expected = np.mean([structural_similarity(*pair, channel_axis=-1) for pair in pairs])
        assert found["results"][0]["ssim"]["mean"] == pytest.approx(expected, abs=1e-6)
        assert "7x7" in found["definitions"]["ssim"]
        assert set(found["definitions"]) == {"ssim", "ci95"}

    def test_zip_and_folder_give_the_same(self, sources):
        with zipfile.ZipFile(sources / "low.zip", "w") as archive:
            for path in sorted((sources / "low").rglob("*.jpg")):
                archive.write(path, path.relative_to(sources / "low"))
        config = EvalConfig(gt=str(sources / "gt"), pred=(str(sources / "low.zip"),), device="cpu")
        assert as_json(paired.evaluate(config))["results"] == as_json(run(sources, "low"))["results"]

    def test_versions_and_weights_are_stated(self, sources):
        versions = as_json(run(sources, "low"))["versions"]
        assert versions["aecli"] == aecli._version.__version__
        assert {"python", "torch", "numpy", "pillow"} <= set(versions)
        assert len(versions["lpips_alex_sha256"]) == 64


class TestWhatDoesNotPair:
    @pytest.fixture
    def torn(self, tmp_path):
        """a and b pair; the rest has one trouble each."""
        for name in "abcdefgh":
            save(tmp_path / "gt", f"{name}.png", crop(ord(name)))
            save(tmp_path / "ae", f"{name}.jpg", crop(ord(name)), quality=30)
            save(tmp_path / "vae", f"{name}.png", crop(ord(name) + 1))
        (tmp_path / "ae" / "c.jpg").unlink()
        save(tmp_path / "vae", "extra [1].png", crop(0))
        save(tmp_path / "ae", "d.png", crop(0))
        save(tmp_path / "vae", "e.png", crop(0, 40, 48))
        for name in ("gt", "ae", "vae"):
            save(tmp_path / name, "f.jpg" if name == "ae" else "f.png", crop(0, 12, 60))
        (tmp_path / "vae" / "g.png").write_bytes(b"no picture at all")
        whole = (tmp_path / "gt" / "h.png").read_bytes()
        (tmp_path / "gt" / "h.png").write_bytes(whole[: len(whole) // 2])  # a sound header
        return tmp_path

    def test_skip_measures_the_same_images_for_all_and_lists_the_rest(self, torn):
        heard = []
        report = as_json(run(torn, "ae", "vae", on_mismatch="skip", listen=heard.append))
        assert report["n"] == 2
        found = {(each["name"], each["prediction"]): each["reason"] for each in report["unpaired"]}
        assert set(found) == {
            ("c.png", "ae"), ("extra [1].png", "vae"), ("d.jpg", "ae"), ("e.png", "vae"), ("f.png", None),
            ("g.png", "vae"), ("h.png", None),
        }  # fmt: skip
        assert found["e.png", "vae"] == "48x40, its ground truth 72x64"
        assert "12" in found["f.png", None]
        assert "lpips needs 31" in found["f.png", None]
        notices = [each.text for each in heard if isinstance(each, Notice)]
        assert len(notices) == 1
        assert "'extra [1].png'" in notices[0]
        for other in "cdefgh":
            for source in ("gt", "ae", "vae"):
                for path in (torn / source).glob(f"{other}.*"):
                    path.unlink()
        (torn / "vae" / "extra [1].png").unlink()
        assert as_json(run(torn, "ae", "vae"))["results"] == report["results"]

    def test_names_that_do_not_pair_are_an_error_under_resize_too(self, torn):
        for how in ("error", "resize"):
            with pytest.raises(DataError) as caught:
                run(torn, "ae", "vae", on_mismatch=how)
            message = str(caught.value)
            assert len(message.splitlines()) == 2
            for part in ("'c.png'", "'extra [1].png'", "'d.jpg'", "--pred ae", "--pred vae", "--on-mismatch skip"):
                assert part in message

    def test_many_are_counted_and_a_few_named(self, tmp_path):
        for index in range(9):
            save(tmp_path / "gt", f"{index}.png", crop(index))
        save(tmp_path / "ae", "0.png", crop(0))
        with pytest.raises(DataError, match=r"(?m)8 missing: '1\.png', '2\.png', '3\.png', …$"):
            run(tmp_path, "ae")

    def test_a_newline_in_a_name_stays_out_of_the_message(self, tmp_path):
        save(tmp_path / "gt", "a.png", crop(0))
        save(tmp_path / "gt", "b\nc.png", crop(0))
        save(tmp_path / "ae", "a.png", crop(0))
        with pytest.raises(DataError) as caught:
            run(tmp_path, "ae")
        assert r"'b\nc.png'" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 2

    @pytest.fixture
    def unequal(self, tmp_path):
        save(tmp_path / "gt", "a.png", crop(0))
        save(tmp_path / "gt", "b.png", crop(1))
        save(tmp_path / "ae", "a.png", crop(2))
        save(tmp_path / "ae", "b.png", crop(3, 10, 9))
        return tmp_path

    def test_differing_sizes_are_an_error(self, unequal):
        with pytest.raises(DataError, match=r"(?s)'b\.png' \(9x10, its ground truth 72x64\).*--on-mismatch resize"):
            run(unequal, "ae")

    def test_differing_sizes_can_be_resized(self, unequal):
        resized = np.array(Image.fromarray(crop(3, 10, 9)).resize((72, 64), Image.Resampling.BICUBIC))
        expected = [ssim_by_hand(crop(0), crop(2)), ssim_by_hand(crop(1), resized)]
        report = as_json(run(unequal, "ae", metrics=("ssim",), on_mismatch="resize"))
        assert report["results"][0]["ssim"]["mean"] == pytest.approx(np.mean(expected), abs=1e-6)
        assert "1 of 2 of ae" in report["definitions"]["resize"]

    def test_differing_sizes_can_be_skipped(self, unequal):
        report = as_json(run(unequal, "ae", on_mismatch="skip"))
        assert report["n"] == 1
        assert "resize" not in report["definitions"]

    @pytest.mark.parametrize(
        ("side", "metrics", "window"),
        [(10, ("psnr", "ssim"), "gaussian"), (6, ("ssim",), "uniform"), (30, ("lpips",), "gaussian")],
    )
    def test_images_too_small_for_a_metric(self, tmp_path, side, metrics, window):
        save(tmp_path / "gt", "a.png", crop(0, 40, side))
        save(tmp_path / "ae", "a.png", crop(1, 40, side))
        with pytest.raises(DataError, match=rf"{side}x40, and {metrics[-1]} needs {side + 1} pixels"):
            run(tmp_path, "ae", metrics=metrics, ssim_window=window)
        assert as_json(run(tmp_path, "ae", metrics=("psnr",)))["n"] == 1
        with pytest.raises(DataError, match="no image is left to measure"):
            run(tmp_path, "ae", metrics=metrics, ssim_window=window, on_mismatch="skip")

    @pytest.mark.parametrize("source", ["gt", "ae"])
    def test_an_image_that_breaks_off_is_named(self, tmp_path, source):
        for name in ("gt", "ae"):
            for image in "ab":
                save(tmp_path / name, f"{image}.png", crop(ord(image)))
        whole = (tmp_path / source / "b.png").read_bytes()
        (tmp_path / source / "b.png").write_bytes(whole[: len(whole) // 2])
        label = "--gt" if source == "gt" else "--pred ae"
        with pytest.raises(DataError, match=rf"(?s){label}: 1 unreadable: 'b\.png'.*--on-mismatch skip"):
            run(tmp_path, "ae")
        report = as_json(run(tmp_path, "ae", on_mismatch="skip"))
        assert report["n"] == 1
        assert [each["name"] for each in report["unpaired"]] == ["b.png"]

    def test_nothing_readable_is_an_error_when_skipping(self, tmp_path):
        for name in ("gt", "ae"):
            save(tmp_path / name, "a.png", crop(0))
        whole = (tmp_path / "ae" / "a.png").read_bytes()
        (tmp_path / "ae" / "a.png").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(DataError, match=r"no image is left to measure.*'a\.png'"):
            run(tmp_path, "ae", on_mismatch="skip", per_image=tmp_path / "each.csv")
        assert not (tmp_path / "each.csv").exists()


class TestFailuresBeforeTheWork:
    @pytest.fixture
    def undecodable(self, sources, monkeypatch):
        def decode(image):
            raise AssertionError("an image was decoded")

        monkeypatch.setattr(measuring, "decode", decode)
        return sources

    @pytest.mark.parametrize("place", ["gt", "file/each.csv"])
    def test_unwritable_csv(self, undecodable, place):
        (undecodable / "file").write_text("in the way")
        with pytest.raises(OutputError, match="--per-image"):
            run(undecodable, "low", per_image=undecodable / place)

    def test_missing_weights(self, undecodable, monkeypatch, tmp_path):
        monkeypatch.delenv("AECLI_WEIGHTS", raising=False)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr("aecli.metrics.network_weights.DOWNLOADS", "http://127.0.0.1:9")
        monkeypatch.setenv("no_proxy", "*")
        with pytest.raises(WeightsError, match="vgg16"):
            run(undecodable, "low", lpips_net="vgg")

    def test_missing_source_and_taken_name(self, undecodable):
        with pytest.raises(DataError, match="nowhere"):
            run(undecodable, "nowhere")
        with pytest.raises(ConfigError, match="already used"):
            run(undecodable, "low", "low")


def test_a_csv_that_is_replaced_is_said_so(sources):
    heard = []
    (sources / "each.csv").write_text("old")
    run(sources, "low", metrics=("psnr",), per_image=sources / "each.csv", listen=heard.append)
    assert [each.text for each in heard if isinstance(each, Notice)] == [f"replacing {sources / 'each.csv'}"]
    rows = list(csv.DictReader(io.StringIO((sources / "each.csv").read_text())))
    assert [(row["ssim"], row["lpips"]) for row in rows] == [("", "")] * 6
    assert sorted(path.name for path in sources.iterdir()) == ["each.csv", "gt", "high", "low"]


def test_progress_comes_to_its_end(sources):
    heard = []
    run(sources, "low", metrics=("psnr",), batch_size=2, listen=heard.append)
    measuring = [each for each in heard if isinstance(each, Progress) and each.task == "measuring"]
    assert [each.done for each in measuring] == [2, 4, 6]
    assert measuring[-1].total == 6


def test_too_little_memory_is_told(sources, monkeypatch):
    def hungry(config):
        metric = BUILDERS["ssim"](config)

        def against(truths):
            return lambda predictions: torch.empty(2**56, dtype=torch.uint8)

        return replace(metric, load=lambda device, listen: LoadedMetric(against))

    monkeypatch.setitem(BUILDERS, "psnr", hungry)
    with pytest.raises(DeviceError, match="too little memory\nhint: try .*--batch-size"):
        run(sources, "low", metrics=("psnr",))
