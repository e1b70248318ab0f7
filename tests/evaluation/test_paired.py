"""`eval` of predictions against their ground truth: numbers by hand, and failures before any image is decoded."""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from threadpoolctl import ThreadpoolController

import aecli
from aecli.errors import ConfigError, DataError, DeviceError, OutputError, WeightsError
from aecli.evaluation import decoding, measuring
from aecli.metrics.base import LoadedMetric
from aecli.metrics.registry import BUILDERS
from aecli.metrics.statistics import bootstrap_means
from aecli.progress import Notice, Progress
from tests.support.images import read_rgb, save_image
from tests.support.paired import compare, compare_json, crop, read_csv, ssim_by_hand

METRICS = ("psnr", "ssim", "lpips")


@pytest.fixture
def sources(tmp_path):
    """Six images of two sizes, and copies of them as JPEGs of quality 10 and 60."""
    for index in range(6):
        pixels = crop(index) if index % 3 else crop(index, 48, 40)
        save_image(tmp_path / f"gt/part/{index}.png", pixels)
        save_image(tmp_path / f"low/part/{index}.jpg", pixels, quality=10)
        save_image(tmp_path / f"high/part/{index}.jpg", pixels, quality=60)
    return tmp_path


def decoded_pairs(sources, indices=range(6)):
    return [(read_rgb(sources / f"gt/part/{i}.png"), read_rgb(sources / f"low/part/{i}.jpg")) for i in indices]


def mean_mse(pairs):
    return np.mean([np.mean((a.astype(float) - b) ** 2) for a, b in pairs])


@pytest.fixture
def lpips_by_hand(lpips_references):
    network = lpips_references[0]["alex"]

    def distance(a, b):
        pair = [torch.from_numpy(each).permute(2, 0, 1)[None] / 127.5 - 1 for each in (a, b)]
        with torch.no_grad():
            return network(*pair).item()

    return distance


class TestWithoutPyTorch:
    METRICS = ("psnr", "ssim", "lpips", "ms-ssim", "psnr-y", "ssim-y")

    def test_metrics_do_not_import_it_and_agree(self, tmp_path):
        for index in range(3):
            truth = crop(index, 176, 180)
            save_image(tmp_path / f"gt/{index}.png", truth)
            save_image(tmp_path / f"low/{index}.jpg", truth, quality=10)
            save_image(tmp_path / f"high/{index}.jpg", truth, quality=60)
        script = (
            "import atexit, os, sys; os._exit = sys.exit\n"
            "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))\n"
            "from aecli.cli.main import main; main()"
        )
        words = ["eval", "--gt", "gt", "--pred", "low", "--pred", "high", "--metrics", ",".join(self.METRICS),
                 "--per-image", "each.csv", "--report", "page.html", "--workers", "2",
                 "--device", "cpu", "--json", "--quiet"]  # fmt: skip
        ran = subprocess.run([sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True, text=True)
        assert (ran.returncode, ran.stderr) == (0, "False\n")
        # With PyTorch imported, as here, in one thread.
        assert torch.__version__.startswith(json.loads(ran.stdout)["versions"]["torch"])
        compare(tmp_path, "low", "high", metrics=self.METRICS, per_image=tmp_path / "again.csv", workers=1)
        assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "each.csv").read_bytes()


class TestNumbers:
    def test_a_low_quality_copy_by_hand(self, sources, lpips_by_hand):
        pairs = decoded_pairs(sources)
        by_hand = {"psnr": peak_signal_noise_ratio, "ssim": ssim_by_hand, "lpips": lpips_by_hand}
        found = compare_json(sources, "low", per_image=sources / "each.csv")
        assert (found["n"], found["unpaired"], found["comparisons"]) == (6, [], [])
        (result,) = found["results"]
        assert result["name"] == "low"
        rows = read_csv(sources / "each.csv")
        assert list(rows[0]) == ["name", "prediction", *METRICS]
        assert [(row["name"], row["prediction"]) for row in rows] == [(f"part/{i}.png", "low") for i in range(6)]
        for (name, measure), tolerance in zip(by_hand.items(), (1e-9, 1e-6, 1e-5), strict=True):
            expected = np.array([measure(*pair) for pair in pairs])
            assert result[name]["mean"] == pytest.approx(expected.mean(), abs=tolerance)
            assert result[name]["median"] == pytest.approx(np.median(expected), abs=tolerance)
            assert result[name]["ci95"] == pytest.approx(bootstrap_means(expected[:, None])[0], abs=tolerance)
            assert [float(row[name]) for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)
        assert result["psnr"]["pooled"] == pytest.approx(10 * math.log10(255**2 / mean_mse(pairs)))
        assert result["psnr"]["identical"] == 0
        assert set(result["ssim"]) == set(result["lpips"]) == {"mean", "ci95", "median"}

    def test_a_folder_against_itself(self, sources):
        report = compare(sources, "gt", per_image=sources / "each.csv")
        (result,) = report.to_json()["results"]
        assert result["psnr"] == {
            "mean": None,
            "ci95": None,
            "median": None,
            "pooled": None,
            "identical": 6,
            "images": 0,
        }
        assert result["ssim"]["mean"] == pytest.approx(1, abs=1e-12)
        assert result["lpips"]["mean"] == 0
        assert report.results[0].scores["psnr"].median == math.inf
        assert [row["psnr"] for row in read_csv(sources / "each.csv")] == ["inf"] * 6

    def test_identical_images_are_counted_and_left_out(self, sources):
        for index in (0, 1):
            shutil.copy(sources / f"gt/part/{index}.png", sources / "low/part")
            (sources / f"low/part/{index}.jpg").unlink()
        (result,) = compare_json(sources, "low", metrics=("psnr",))["results"]
        pairs = decoded_pairs(sources, range(2, 6))
        expected = [peak_signal_noise_ratio(*pair) for pair in pairs]
        psnr = result.pop("psnr")
        assert result == {"name": "low", "ssim": None, "lpips": None}
        assert psnr.pop("ci95") == pytest.approx(bootstrap_means(np.array(expected)[:, None])[0])
        assert psnr == pytest.approx({
            "mean": np.mean(expected), "median": np.median([*expected, math.inf, math.inf]), "identical": 2,
            "images": 4, "pooled": 10 * math.log10(255**2 / (mean_mse(pairs) * 4 / 6)),
        })  # fmt: skip

    def test_one_pair_has_a_mean_and_no_interval(self, tmp_path):
        save_image(tmp_path / "gt/a.png", crop(0))
        save_image(tmp_path / "ae/a.png", crop(1))
        report = compare_json(tmp_path, "ae")
        assert report["n"] == 1
        for name in METRICS:
            assert report["results"][0][name]["ci95"] is None
            assert report["results"][0][name]["mean"] == report["results"][0][name]["median"]

    def test_several_predictions_get_the_numbers_of_each_alone(self, sources):
        both = compare_json(sources, "low", "high")
        assert both["results"] == [compare_json(sources, name)["results"][0] for name in ("low", "high")]
        (comparison,) = both["comparisons"]
        assert (comparison["a"], comparison["b"]) == ("low", "high")
        low, high = both["results"]
        for name in METRICS:
            found = comparison[name]
            assert found["mean_difference"] == pytest.approx(low[name]["mean"] - high[name]["mean"])
            assert (found["wins_a"], found["wins_b"], found["ties"]) == (0, 6, 0)
            assert found["ci95"][0] < found["mean_difference"] < found["ci95"][1]

    def test_a_bound_on_pixels_does_not_change_the_numbers(self, sources, monkeypatch):
        expected = compare_json(sources, "low")["results"][0]
        monkeypatch.setattr(measuring, "CPU_BATCH_PIXELS", 48 * 40)
        found = compare_json(sources, "low")["results"][0]
        for name in METRICS:
            assert found[name]["mean"] == pytest.approx(expected[name]["mean"], abs=1e-6)
            assert found[name]["ci95"] == pytest.approx(expected[name]["ci95"], abs=1e-6)

    def test_neither_workers_nor_threads_change_a_bit(self, tmp_path):
        for index in range(3):
            save_image(tmp_path / f"gt/{index}.png", crop(index, 160, 200))
            save_image(tmp_path / f"low/{index}.jpg", crop(index, 160, 200), quality=10)
        found = []
        for workers, threads in ((1, 1), (1, 3), (3, 3)):
            with ThreadpoolController().limit(limits=threads, user_api="blas"):
                compare(tmp_path, "low", per_image=tmp_path / "each.csv", workers=workers, batch_size=1)
            found.append((tmp_path / "each.csv").read_bytes())
        assert found == [found[0]] * 3

    def test_threads_are_given_back(self, sources):
        before = torch.get_num_threads()
        compare(sources, "low", metrics=("psnr",))
        assert torch.get_num_threads() == before

    def test_options_reach_the_metrics(self, sources):
        found = compare_json(sources, "low", metrics=("ssim", "ssim"), ssim_window="uniform")
        expected = np.mean([structural_similarity(*pair, channel_axis=-1) for pair in decoded_pairs(sources)])
        assert found["results"][0]["ssim"]["mean"] == pytest.approx(expected, abs=1e-6)
        assert "7x7" in found["definitions"]["ssim"]
        assert set(found["definitions"]) == {"ssim", "ci95", "reading"}

    def test_versions_and_weights_are_stated(self, sources):
        versions = compare_json(sources, "low")["versions"]
        assert versions["aecli"] == aecli._version.__version__
        assert {"python", "torch", "numpy", "pillow"} <= set(versions)
        assert len(versions["lpips_alex_sha256"]) == 64


class TestFailuresBeforeTheWork:
    @pytest.fixture
    def undecodable(self, sources, monkeypatch):
        def decode(*arguments):
            raise AssertionError("an image was decoded")

        monkeypatch.setattr(decoding.PairDecoder, "decode", decode)
        return sources

    @pytest.mark.parametrize("place", ["folder.csv", "file/each.csv"])
    def test_unwritable_csv(self, undecodable, place):
        (undecodable / "file").write_text("in the way")
        (undecodable / "folder.csv").mkdir()
        with pytest.raises(OutputError, match="--per-image"):
            compare(undecodable, "low", per_image=undecodable / place)

    def test_missing_weights(self, undecodable, monkeypatch, tmp_path):
        monkeypatch.delenv("AECLI_WEIGHTS", raising=False)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr("aecli.metrics.network_weights.DOWNLOADS", "http://127.0.0.1:9")
        monkeypatch.setenv("no_proxy", "*")
        with pytest.raises(WeightsError, match="vgg16"):
            compare(undecodable, "low", lpips_net="vgg")

    def test_missing_source_and_name_used_twice(self, undecodable):
        with pytest.raises(DataError, match="nowhere"):
            compare(undecodable, "nowhere")
        with pytest.raises(ConfigError, match="low"):
            compare(undecodable, "low", "low")


def test_replacing_a_csv_gives_a_notice(sources):
    reports = []
    (sources / "each.csv").write_text("old")
    compare(sources, "low", metrics=("psnr",), per_image=sources / "each.csv", listen=reports.append)
    assert [each.text for each in reports if isinstance(each, Notice)] == [f"replacing {sources / 'each.csv'}"]
    assert [(row["ssim"], row["lpips"]) for row in read_csv(sources / "each.csv")] == [("", "")] * 6
    assert sorted(path.name for path in sources.iterdir()) == ["each.csv", "gt", "high", "low"]


def test_progress_comes_to_its_end(sources):
    reports = []
    compare(sources, "low", metrics=("psnr",), batch_size=2, listen=reports.append)
    found = [each for each in reports if isinstance(each, Progress) and each.task == "measuring"]
    assert [(each.done, each.total) for each in found] == [(2, 6), (4, 6), (6, 6)]


def test_out_of_memory_is_a_device_error(sources, monkeypatch):
    def hungry(config):
        def against(truths):
            return lambda predictions: torch.empty(2**56, dtype=torch.uint8)

        return replace(BUILDERS["ssim"](config), load=lambda device, listen: LoadedMetric(against))

    monkeypatch.setitem(BUILDERS, "psnr", hungry)
    with pytest.raises(DeviceError, match="memory\nhint: .*--batch-size"):
        compare(sources, "low", metrics=("psnr",))
