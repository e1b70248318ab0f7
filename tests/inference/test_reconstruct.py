"""Reconstructions, samples and grids against what the report's own modules give when worked by hand."""

import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import aecli.inference.reconstruct as reconstruct_module
from aecli.configs import GridConfig, ReconstructConfig, SampleConfig
from aecli.errors import ConfigError, DataError, ModelError, OutputError
from aecli.inference import loaded_model
from aecli.inference.loaded_model import LoadedModel, load_model
from aecli.inference.reconstruct import reconstruct
from aecli.progress import Notice, Progress
from aecli.sampling.prior_choice import sample_noise
from aecli.sampling.sample import sample
from tests.reference.report import ReportAE, ReportVAE
from tests.support.trained import NAMES, SIZE, TINY, TRAIN, VAL, ok, png, pngs, write_images

LATENT = 64  # 16 times the width
BATCH = 16  # the default


def reference(name):
    """The report's module with a run's weights, in evaluation mode and in the memory format that aecli runs in."""
    model = {"ae": ReportAE, "vae": ReportVAE}[name](4, LATENT)
    model.load_state_dict(load_file(f"runs/{name}/model.safetensors"), strict=True)
    return model.eval().to(memory_format=torch.channels_last)


def by_hand(function, images):
    """uint8 (N, H, W, 3) through `function` of (N, 3, H, W) in [-1, 1], rounded to 8 bits."""
    batch = torch.from_numpy(np.stack(images).astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        output = function(batch.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1).numpy()
    return np.rint((output.clip(-1, 1) + 1) * 127.5).astype(np.uint8)


def assert_same_pixels(found, expected):
    """Equal, but for a value that lies on the edge between two integers and was added up in another order."""
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def shrunk(name, folder="images"):
    with Image.open(f"{folder}/{name}.png") as opened:
        return np.array(opened.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


# reconstruct


@pytest.mark.parametrize("model", ["ae", "vae"])
def test_reconstructions_of_the_runs_validation_images_are_those_by_hand(trained, model):
    result = ok("reconstruct", "--model", model)
    assert result.stdout == f"wrote 3 reconstructions to reconstructions/{model}\n"
    out = trained / "reconstructions" / model
    assert pngs(out) == VAL
    expected = by_hand(reference(model), [shrunk(name) for name in VAL])
    for name, pixels in zip(VAL, expected, strict=True):
        assert_same_pixels(png(out / f"{name}.png"), pixels)


def test_train_and_val_are_all_and_no_image_is_in_both(trained):
    found = {
        split: reconstruct(ReconstructConfig("ae", split=split, out=trained / split)) for split in ("train", "val")
    }
    reconstruct(ReconstructConfig("ae", split="all", out=trained / "all"))
    assert pngs(trained / "val") == VAL
    assert sorted(pngs(trained / "train") + VAL) == pngs(trained / "all") == sorted(NAMES)
    assert (found["train"].written, found["val"].written) == (9, 3)
    assert reconstruct(ReconstructConfig("ae", data="images", split="val", out=trained / "v")).written == 3


def test_data_means_all_of_it_whatever_the_file_type_and_depth_of_folders(trained):
    write_images(trained / "new", ["deep/er/a.b", "c"])
    with Image.open(trained / "new/c.png") as opened:
        opened.save(trained / "new/d.bmp")
    reconstruct(ReconstructConfig("vae", data="new", out=trained / "out"))
    assert pngs(trained / "out") == ["c", "d", "deep/er/a.b"]
    assert np.array_equal(png(trained / "out/c.png"), png(trained / "out/d.png"))


def test_native_keeps_odd_sizes_and_pads_with_edge_values(trained):
    write_images(trained / "odd", ["a", "c"], 37, 53)
    write_images(trained / "odd", ["b"], 64, 32)
    ok("reconstruct", "--model", "ae", "--data", "odd", "--native", "--out", "out")
    model = reference("ae")
    for name, (height, width) in {"a": (37, 53), "b": (64, 32), "c": (37, 53)}.items():
        pixels = png(trained / f"odd/{name}.png")
        rows = np.minimum(np.arange(64), height - 1)  # the last row and column repeated, below and to the right
        columns = np.minimum(np.arange(64 if width == 53 else 32), width - 1)
        expected = by_hand(model, [pixels[rows][:, columns]])[0, :height, :width]
        assert_same_pixels(png(trained / f"out/{name}.png"), expected)


def mixed_sizes(folder):
    write_images(folder, [f"a{number}" for number in range(5)], 40, 40)
    write_images(folder, ["a2", "b"], 33, 40)


def test_neither_batch_size_nor_memory_change_a_pixel_beyond_rounding(trained, monkeypatch):
    mixed_sizes(trained / "mixed")
    for batch_size, pixels in ((1, 2**18), (2, 2**18), (16, 2 * 40 * 40)):
        monkeypatch.setattr(loaded_model, "WORKER_PIXELS", pixels)
        config = ReconstructConfig(
            "ae", data="mixed", native=True, batch_size=batch_size, out=trained / f"{batch_size}"
        )
        assert reconstruct(config).written == 6
    for name in pngs(trained / "1"):
        assert_same_pixels(png(trained / f"2/{name}.png"), png(trained / f"1/{name}.png"))
        assert_same_pixels(png(trained / f"16/{name}.png"), png(trained / f"1/{name}.png"))


@pytest.mark.parametrize("native", [False, True])
def test_workers_change_nothing_at_all(trained, monkeypatch, native):
    """Not even which images share a batch, on which the last bits of a number depend."""
    mixed_sizes(trained / "mixed")
    batches, exactly = {}, LoadedModel.reconstruct
    for workers in (1, 2, 3, 50):
        seen = batches.setdefault(workers, [])

        def noting(self, images, *more, seen=seen):
            seen.append(images.tobytes())
            return exactly(self, images, *more)

        monkeypatch.setattr(LoadedModel, "reconstruct", noting)
        out = trained / f"{workers}"
        reconstruct(ReconstructConfig("ae", data="mixed", native=native, batch_size=3, workers=workers, out=out))
        for name in pngs(trained / "1"):
            assert (out / f"{name}.png").read_bytes() == (trained / f"1/{name}.png").read_bytes()
    assert all(sorted(seen) == sorted(batches[1]) for seen in batches.values())


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
    monkeypatch.setattr(reconstruct_module, "_CPU_PIXELS", 6 * SIZE**2)
    reconstruct(ReconstructConfig("ae", data="images", workers=12, out=trained / "out"))
    assert max(most) == 6 * SIZE**2


def test_reduced_precision_stays_near(trained):
    for precision in ("fp32", "bf16"):
        reconstruct(ReconstructConfig("ae", precision=precision, out=trained / precision))
    difference = np.abs(png(trained / "bf16/i7.png").astype(int) - png(trained / "fp32/i7.png"))
    assert 0 < difference.max() < 8


def test_what_cannot_be_read_is_named_and_the_rest_written(trained):
    write_images(trained / "some", ["a", "b", "c"])
    (trained / "some/b.png").write_bytes(b"no image")
    reports = []
    result = reconstruct(ReconstructConfig("ae", data="some", out=trained / "out"), reports.append)
    assert list(result.unreadable) == ["b.png"] and result.written == 2
    assert pngs(trained / "out") == ["a", "c"]
    done = [(report.done, report.total) for report in reports if isinstance(report, Progress)]
    assert done[-1] == (3, 3)


def test_names_that_would_overwrite_each_other_are_refused_before_anything_is_written(trained):
    write_images(trained / "clash", ["a", "b"])
    (trained / "clash/a.jpg").write_bytes((trained / "clash/a.png").read_bytes())
    with pytest.raises(DataError, match=r"suffix.*a\.\*"):
        reconstruct(ReconstructConfig("ae", data="clash", out=trained / "out"))
    assert not (trained / "out").exists()


def test_validation_images_of_their_own_may_bear_the_names_of_the_training_images(trained):
    write_images(trained / "held_out", ["i1", "new"])
    ok("train", "ae", "--data", "images", *TINY, "--val-data", "held_out", "--out", "run", "--quiet")
    ok("reconstruct", "--model", "run", "--out", "val")
    ok("reconstruct", "--model", "run", "--split", "train", "--out", "train")
    assert (pngs(trained / "val"), pngs(trained / "train")) == (["i1", "new"], sorted(NAMES))
    with pytest.raises(DataError, match="i1") as caught:
        reconstruct(ReconstructConfig("run", split="all", out=trained / "all"))
    assert "suffix" not in str(caught.value), "it is not the suffix in which they differ"


def test_overwriting_is_asked_for_and_announced(trained):
    out = trained / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite"):
        reconstruct(ReconstructConfig("ae", out=out))
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    reports = []
    reconstruct(ReconstructConfig("ae", out=out, overwrite=True), reports.append)
    assert any(isinstance(report, Notice) and str(out) in report.text for report in reports)
    assert (out / "mine.txt").read_text() == "mine" and (out / "i7.png").exists()


def test_a_crop_too_elongated_is_named_like_any_unreadable_image(trained):
    ok("train", "ae", *TRAIN, "--epochs", "1", "--fit", "crop", "--out", "crop", "--quiet")
    write_images(trained / "long", ["a"])
    Image.new("RGB", (300_000, 1)).save(trained / "long/b.png")  # its short side at 32 would make 307 million pixels
    result = reconstruct(ReconstructConfig("crop", data="long", out=trained / "out"))
    assert (result.written, list(result.unreadable)) == (1, ["b.png"])


# What --model can mean


def test_a_bare_file_needs_data_and_knows_no_split(trained):
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


# sample


def test_image_i_depends_on_seed_and_i_alone(trained):
    for n, out in ((3, "three"), (20, "twenty")):
        ok("sample", "--model", "vae", "--prior", "normal", "--n", n, "--seed", "5", "--out", out)
    assert pngs(trained / "twenty") == [f"{index:06d}" for index in range(20)]
    assert pngs(trained / "three") == pngs(trained / "twenty")[:3]
    for name in pngs(trained / "three"):
        assert (trained / f"three/{name}.png").read_bytes() == (trained / f"twenty/{name}.png").read_bytes()
    sample(SampleConfig("vae", prior="normal", n=3, seed=6, out=trained / "other"))
    distinct = {
        (trained / f"{out}/{name}.png").read_bytes() for out in ("twenty", "other") for name in pngs(trained / out)
    }
    assert len(distinct) == 23


def test_samples_are_decoded_noise(trained):
    sample(SampleConfig("vae", prior="normal", n=2, seed=3, temperature=0.7, out=trained / "out"))
    noise = torch.stack([0.7 * sample_noise((LATENT, 1, 1), 3, index) for index in range(16)])
    with torch.no_grad():
        decoded = reference("vae").decoder(noise).permute(0, 2, 3, 1).numpy()
    expected = np.rint((decoded + 1) * 127.5).astype(np.uint8)
    for index in range(2):
        assert_same_pixels(png(trained / f"out/{index:06d}.png"), expected[index])


def test_the_noise_is_standard_normal_and_its_own_for_every_index():
    noise = torch.stack([sample_noise((64, 8, 8), 0, index) for index in range(4)]).double()
    assert abs(noise.mean()) < 0.03 and abs(noise.std() - 1) < 0.03
    correlations = torch.corrcoef(noise.flatten(1)) - torch.eye(4)
    assert correlations.abs().max() < 0.08


def test_temperature_zero_gives_one_image(trained):
    sample(SampleConfig("vae", n=3, temperature=0, out=trained / "cold"))
    first, *others = [png(trained / f"cold/{index:06d}.png") for index in range(3)]
    assert all(np.array_equal(first, other) for other in others)


def test_a_sheet_shows_the_folders_images_in_order(trained):
    sample(SampleConfig("vae", prior="normal", n=5, out=trained / "folder"))
    sample(SampleConfig("vae", prior="normal", n=5, out=trained / "sheet.png"))
    sheet = png(trained / "sheet.png")
    found = []
    for index in range(5):
        tile = png(trained / f"folder/{index:06d}.png").repeat(4, 0).repeat(4, 1)  # 32 pixels are drawn as 128
        windows = np.lib.stride_tricks.sliding_window_view(sheet[..., 0], (128, 128))[::1, ::1]
        corners = np.argwhere((windows[:, :, 0, 0] == tile[0, 0, 0]) & (windows[:, :, -1, -1] == tile[-1, -1, 0]))
        places = [(y, x) for y, x in corners.tolist() if np.array_equal(sheet[y : y + 128, x : x + 128], tile)]
        assert len(places) == 1
        found += places
    assert found == sorted(found) and len({y for y, _ in found}) == 2


def test_an_ae_cannot_be_sampled_and_the_reason_is_told(trained):
    with pytest.raises(ModelError, match=r"AE can't be sampled from N\(0, I\).*\nhint: .*gaussian"):
        sample(SampleConfig("ae", prior="normal"))
    assert not (trained / "samples.png").exists()


# grid


def test_a_grid_shows_the_images_above_their_reconstructions(trained):
    from aecli.inference.comparison_grid import draw_comparison

    result = draw_comparison(GridConfig(n=2, seed=4, out=trained / "g.png"))
    assert result.rows == ["Ground Truth", "AE", "VAE"]
    assert len(set(result.images)) == 2 and {f"{name}.png" for name in VAL} >= set(result.images)
    picture = png(trained / "g.png")
    originals = [shrunk(name.removesuffix(".png")) for name in result.images]
    rows = [np.stack(originals), *(by_hand(reference(name), originals) for name in ("ae", "vae"))]
    # 32 pixels are drawn as 128; tiles begin where the white paper between them ends.
    tops, lefts = (edges(picture.min(axis=2), axis) for axis in (1, 0))
    for row, top in zip(rows, tops, strict=True):
        for image, left in zip(row, lefts[-2:], strict=True):
            assert_same_pixels(picture[top : top + 128 : 4, left : left + 128 : 4], image)


def edges(darkest, axis):
    """Where stretches of exactly 128 inked rows (axis 1) or columns (axis 0) begin."""
    inked = np.concatenate([[False], (darkest < 255).mean(axis=axis) > 0.2, [False]])
    changes = np.flatnonzero(inked[1:] != inked[:-1])
    return [int(begin) for begin, end in zip(changes[::2], changes[1::2], strict=True) if end - begin == 128]


def test_a_grid_is_the_same_again_and_another_with_another_seed(trained):
    arguments = ["grid", "--data", "images", "--n", "4"]
    first = ok(*arguments, "--out", "a.png")
    ok(*arguments, "--out", "b.png")
    ok(*arguments, "--out", "c.png", "--seed", "1")
    assert first.stdout == "drew 4 images in rows Ground Truth, AE, VAE: a.png\n"
    assert (trained / "a.png").read_bytes() == (trained / "b.png").read_bytes() != (trained / "c.png").read_bytes()


def test_rows_stand_in_the_order_asked_for_and_can_be_told_apart(trained):
    from aecli.inference.comparison_grid import draw_comparison

    shutil.copy("runs/vae/model.safetensors", "bare.safetensors")
    models = ("vae", "bare.safetensors", "runs/ae")
    result = draw_comparison(GridConfig(n=1, models=models, out=trained / "g.png"))
    assert result.rows == ["Ground Truth", "VAE vae", "VAE bare", "AE"]
