"""`aecli reconstruct`: which images, workers and batches, names, and what --model can mean."""

import shutil
import time

import numpy as np
import pytest
from PIL import Image

from aecli.configs import ReconstructConfig
from aecli.errors import ConfigError, DataError
from aecli.inference import image_batches, loaded_model
from aecli.inference.loaded_model import LoadedModel, load_model
from aecli.inference.reconstruct import reconstruct
from aecli.progress import Notice, Progress
from tests.support.by_hand import assert_same_pixels
from tests.support.images import save_image
from tests.support.trained import NAMES, SIZE, TINY, TRAIN, VAL, ok, ok_json, png, pngs, write_images


def test_train_and_val_are_all_and_no_image_is_in_both(trained):
    found = {
        split: reconstruct(ReconstructConfig("ae", split=split, out=trained / split)) for split in ("train", "val")
    }
    reconstruct(ReconstructConfig("ae", split="all", out=trained / "all"))
    assert pngs(trained / "val") == VAL
    assert sorted(pngs(trained / "train") + VAL) == pngs(trained / "all") == sorted(NAMES)
    assert (found["train"].written, found["val"].written) == (9, 3)
    assert reconstruct(ReconstructConfig("ae", data="images", split="val", out=trained / "v")).written == 3


def test_data_is_read_whole_in_all_formats_and_subfolders(trained):
    write_images(trained / "new", ["deep/er/a.b", "c"])
    with Image.open(trained / "new/c.png") as opened:
        opened.save(trained / "new/d.bmp")
    reports = []
    reconstruct(ReconstructConfig("vae", data="new", out=trained / "out"), reports.append)
    assert pngs(trained / "out") == ["c", "d", "deep/er/a.b"]
    assert [(report.done, report.total) for report in reports if isinstance(report, Progress)][-1] == (3, 3)
    assert np.array_equal(png(trained / "out/c.png"), png(trained / "out/d.png"))


def test_neither_batch_size_nor_memory_change_a_pixel_beyond_rounding(trained, monkeypatch):
    write_images(trained / "mixed", [f"a{number}" for number in range(5)], 40, 40)
    write_images(trained / "mixed", ["a2", "b"], 33, 40)
    for batch_size, pixels in ((1, 2**18), (2, 2**18), (16, 2 * 40 * 40)):
        monkeypatch.setattr(loaded_model, "WORKER_PIXELS", pixels)
        config = ReconstructConfig(
            "ae", data="mixed", native=True, batch_size=batch_size, out=trained / f"{batch_size}"
        )
        assert reconstruct(config).written == 6
    for name in pngs(trained / "1"):
        assert_same_pixels(png(trained / f"2/{name}.png"), png(trained / f"1/{name}.png"))
        assert_same_pixels(png(trained / f"16/{name}.png"), png(trained / f"1/{name}.png"))


def test_on_a_cpu_no_more_is_reconstructed_at_once_however_many_workers_there_are(trained, monkeypatch):
    working, most = [], []
    exactly = LoadedModel.reconstruct

    def counting(self, images, *more):
        working.append(images.shape[0] * images.shape[2] * images.shape[3])
        most.append(sum(working))
        time.sleep(0.02)
        result = exactly(self, images, *more)
        working.pop()
        return result

    monkeypatch.setattr(LoadedModel, "reconstruct", counting)
    monkeypatch.setattr(loaded_model, "WORKER_PIXELS", 2 * SIZE**2)
    monkeypatch.setattr(image_batches, "_CPU_PIXELS", 6 * SIZE**2)
    reconstruct(ReconstructConfig("ae", data="images", workers=12, out=trained / "out"))
    assert max(most) == 6 * SIZE**2


def test_reduced_precision_stays_near(trained):
    for precision in ("fp32", "bf16"):
        reconstruct(ReconstructConfig("ae", precision=precision, out=trained / precision))
    difference = np.abs(png(trained / "bf16/i7.png").astype(int) - png(trained / "fp32/i7.png"))
    assert 0 < difference.max() < 8


def test_names_that_would_overwrite_each_other_are_refused_before_anything_is_written(trained):
    write_images(trained / "clash", ["a", "b"])
    (trained / "clash/a.jpg").write_bytes((trained / "clash/a.png").read_bytes())
    with pytest.raises(DataError, match=r"suffix.*a\.\*"):
        reconstruct(ReconstructConfig("ae", data="clash", out=trained / "out"))
    assert not (trained / "out").exists()


def test_separate_validation_images_may_have_the_names_of_training_images(trained):
    write_images(trained / "held_out", ["i1", "new"])
    ok("train", "ae", "--data", "images", *TINY, "--val-data", "held_out", "--out", "run", "--quiet")
    ok("reconstruct", "--model", "run", "--out", "val")
    ok("reconstruct", "--model", "run", "--split", "train", "--out", "train")
    assert (pngs(trained / "val"), pngs(trained / "train")) == (["i1", "new"], sorted(NAMES))
    with pytest.raises(DataError, match="i1") as caught:
        reconstruct(ReconstructConfig("run", split="all", out=trained / "all"))
    assert "suffix" not in str(caught.value), "it is not the suffix in which they differ"


def test_a_crop_too_elongated_is_named_like_any_unreadable_image(trained):
    ok("train", "ae", *TRAIN, "--epochs", "1", "--fit", "crop", "--out", "crop", "--quiet")
    write_images(trained / "long", ["a"])
    Image.new("RGB", (300_000, 1)).save(trained / "long/b.png")  # its short side at 32 would make 307 million pixels
    result = reconstruct(ReconstructConfig("crop", data="long", out=trained / "out"))
    assert (result.written, list(result.unreadable)) == (1, ["b.png"])


def test_a_bare_file_needs_data_and_has_no_split(trained):
    shutil.copy("runs/vae/model.safetensors", "bare.safetensors")
    with pytest.raises(ConfigError, match="--data"):
        reconstruct(ReconstructConfig("bare.safetensors"))
    with pytest.raises(ConfigError, match="--split"):
        reconstruct(ReconstructConfig("bare.safetensors", data="images", split="val"))
    reconstruct(ReconstructConfig("bare.safetensors", data="images"))
    reconstruct(ReconstructConfig("runs/vae", data="images", out=trained / "run"))
    assert pngs(trained / "reconstructions/bare") == sorted(NAMES)
    for name in NAMES:
        assert np.array_equal(png(trained / f"reconstructions/bare/{name}.png"), png(trained / f"run/{name}.png"))


@pytest.mark.parametrize("model", ["vae", "runs/vae", "runs/vae/", "runs/vae/model.safetensors"])
def test_a_model_is_a_name_a_folder_or_a_file(trained, model):
    loaded = load_model(model, trained / "runs")
    assert (loaded.title, loaded.image_size, loaded.fit) == ("VAE", SIZE, "squash")
    assert loaded.located.run is not None
    assert not loaded.model.training


class TestWhatIsRead:
    def test_is_told_once_a_kind(self, trained):
        folder = trained / "mixed"
        write_images(folder, ["a", "b"])
        alpha = np.full((SIZE, SIZE), 100, np.uint8)
        save_image(folder / "c.png", np.dstack([np.full((SIZE, SIZE, 3), 50, np.uint8), alpha]))
        save_image(folder / "d.png", np.arange(SIZE * SIZE, dtype=np.uint16).reshape(SIZE, SIZE) * 60)
        (folder / "e.heic").write_bytes(b"x")
        heard = []
        config = ReconstructConfig("ae", data="mixed", batch_size=1, out=trained / "out")
        result = reconstruct(config, heard.append)
        assert result.conversions == {"mixed": {
            "background": {"images": 1, "names": ["c.png"]}, "grey": {"images": 1, "names": ["d.png"]},
            "depth": {"images": 1, "names": ["d.png"], "peak": 60 * (SIZE * SIZE - 1)},
        }}  # fmt: skip
        texts = [each.text for each in heard if isinstance(each, Notice)]
        for part in ("laid over white", "more than 8 bits reduced to 8: d.png", "grey among colour", ".heic file"):
            assert sum(part in text for text in texts) == 1, part

    @pytest.mark.parametrize("options", [[], ["--native"]])
    def test_is_laid_over_the_background_asked_for(self, trained, options):
        alpha = np.full((SIZE, SIZE), 100, np.uint8)
        colour = np.full((SIZE, SIZE, 3), 50, np.uint8)
        save_image(trained / "clear/a.png", np.dstack([colour, alpha]))
        laid = np.rint(colour * (100 / 255) + np.array([255, 0, 16]) * (155 / 255)).astype(np.uint8)
        save_image(trained / "laid/a.png", laid)
        ok("reconstruct", "--model", "ae", "--data", "clear", "--background", "#ff0010", "--out", "one", *options)
        ok("reconstruct", "--model", "ae", "--data", "laid", "--out", "two", *options)
        assert_same_pixels(png(trained / "one/a.png"), png(trained / "two/a.png"))

    def test_a_single_file(self, trained):
        result = reconstruct(ReconstructConfig("ae", data="images/i7.png", out=trained / "out"))
        assert result.written == 1 and pngs(trained / "out") == ["i7"]

    @pytest.mark.parametrize("options", [[], ["--out", "photos/rec"], ["--out", "elsewhere"]])
    def test_its_own_outputs_are_no_data(self, trained, options):
        (trained / "images").unlink()  # a link
        write_images(trained / "photos", ["a", "b"])
        for _ in range(2):
            found = ok_json("reconstruct", "--model", "ae", "--data", ".", "--overwrite", *options)
            assert found["written"] == 2, "runs, and what it wrote before, are left out"
