"""Each hint that an error of `eval` prints is run on the input that caused the error, and must succeed."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image

from tests.support.images import save_image, truncate
from tests.support.paired import crop
from tests.support.trained import fails, invoke

SIDES = (72, 64)


def noisy(pixels, seed=0, amount=8):
    noise = np.random.default_rng(seed).normal(0, amount, pixels.shape)
    return np.clip(np.rint(pixels + noise), 0, 255).astype(np.uint8)


def psnr_by_hand(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def hints(message):
    """The ways out of an error's message: the options of each that has some."""
    (hint,) = [line.removeprefix("hint: ") for line in message.splitlines() if line.startswith("hint: ")]
    ways = []
    for way in hint.split("; or "):
        tokens, options = iter(shlex.split(way)), []
        for token in tokens:
            if not token.startswith("--"):
                break
            options += [token, next(tokens)]
        ways.append(options)
    return ways


def follow(*args, **also):
    """Fail; then run the command with each way out, which must succeed. Returns the reports by options."""
    found = {}
    for options in hints(fails(1, "eval", *args)):
        assert options, "a way out begins with its options"
        result = invoke("eval", *args, *options, *also.get(options[0], []), "--json")
        assert result.exit_code == 0, (options, result.output)
        found[" ".join(options)] = json.loads(result.stdout)
    return found


def write(folder, images):
    for number, pixels in enumerate(images):
        save_image(folder / f"{number:02d}.png", pixels)
    return folder


@pytest.fixture
def both(tmp_path):
    return lambda truths, others: ["--gt", write(tmp_path / "gt", truths), "--pred", write(tmp_path / "ae", others)]


def mean(report, metric="psnr"):
    return report["results"][0][metric]["mean"]


class TestSizes:
    def test_a_column_less_is_cropped(self, both):
        truths = [crop(number) for number in range(4)]
        others = [noisy(pixels, 1)[:-1, :-2] for pixels in truths]
        found = follow(*both(truths, others))
        assert list(found) == ["--on-mismatch crop"], "resizing would measure the shift"
        by_hand = np.mean([psnr_by_hand(a[:-1, :-2], b) for a, b in zip(truths, others, strict=True)])
        assert mean(found["--on-mismatch crop"]) == pytest.approx(by_hand, abs=1e-9)
        assert "4 of 4" in found["--on-mismatch crop"]["definitions"]["crop"]

    def test_predictions_that_are_larger_are_cropped_too(self, both, tmp_path):
        truths = [crop(number, 60, 61) for number in range(3)]
        padded = [np.pad(noisy(pixels, 2), ((0, 4), (0, 3), (0, 0)), mode="edge") for pixels in truths]
        args = both(truths, padded)
        more = write(tmp_path / "narrow", [noisy(pixels, 3)[:, :-1] for pixels in truths])
        found = follow(*args, "--pred", more)["--on-mismatch crop"]
        by_hand = np.mean([psnr_by_hand(a[:, :-1], noisy(a, 2)[:, :-1]) for a in truths])
        assert mean(found) == pytest.approx(by_hand, abs=1e-9), "all predictions are measured on the same pixels"

    def test_originals_and_what_a_model_made_of_them(self, both):
        truths = [crop(number, 128, 128 + 16 * number) for number in range(4)]
        shrunk = [Image.fromarray(a).resize((a.shape[1] // 2, 64), Image.Resampling.BILINEAR) for a in truths]
        seen = [np.asarray(a.crop(((a.width - 64) // 2, 0, (a.width - 64) // 2 + 64, 64))) for a in shrunk]
        found = follow(*both(truths, [noisy(pixels, 4) for pixels in seen]))
        assert list(found) == ["--image-size 64 --fit crop", "--image-size 64 --fit squash"]
        by_hand = np.mean([psnr_by_hand(pixels, noisy(pixels, 4)) for pixels in seen])
        cropped, squashed = found.values()
        assert mean(cropped) == pytest.approx(by_hand, abs=1e-9) and mean(squashed) < by_hand
        assert "64x64 by --fit crop" in cropped["definitions"]["image_size"]

    def test_other_sizes_are_resized(self, both):
        found = follow(*both([crop(0), crop(1)], [crop(0, 32, 36), crop(1, 20, 36)]))
        assert list(found) == ["--on-mismatch resize"]

    @pytest.mark.parametrize(
        ("truth", "other", "way"),
        [((150, 205), (160, 224), "crop"), ((150, 200), (144, 192), "crop"), ((300, 200), (270, 180), "resize"),
         ((16, 18), (32, 36), "resize"), ((28, 30), (32, 32), "resize")],
    )  # fmt: skip
    def test_crops_are_known_by_their_sizes(self, both, truth, other, way):
        truths = [np.resize(crop(0), (*truth, 3)), np.resize(crop(1), (*truth, 3))]
        found = follow(*both(truths, [np.resize(crop(0), (*other, 3))] * 2), "--metrics", "psnr")
        assert list(found) == [f"--on-mismatch {way}"]

    def test_where_some_pair_they_alone_can_be_measured(self, both):
        found = follow(*both([crop(0), crop(1)], [crop(0), crop(1, 20, 36)]))
        assert {options: report["n"] for options, report in found.items()} == {
            "--on-mismatch resize": 2, "--on-mismatch skip": 1
        }  # fmt: skip

    def test_what_gets_too_small_by_it_is_known(self, both):
        assert list(follow(*both([crop(0, 31, 33)], [crop(0, 31, 30)]))) == ["--on-mismatch crop --metrics psnr,ssim"]
        truth, other = [crop(0, 90, 100)], [crop(0, 16, 16)]
        assert next(iter(follow(*both(truth, other)))) == "--image-size 16 --fit crop --metrics psnr,ssim"
        small = [crop(0, 28, 40)]
        assert list(follow(*both(small, [crop(0, 50, 60)]))) == ["--on-mismatch resize --metrics psnr,ssim"]
        assert list(follow(*both(small, [crop(0, 27, 39)]))) == ["--on-mismatch crop --metrics psnr,ssim"]

    def test_swapped_sides_name_exif(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        save_image(tmp_path / "gt/a.png", crop(0), exif=exif)
        save_image(tmp_path / "ae/a.png", noisy(crop(0)))
        args = ["eval", "--gt", tmp_path / "gt", "--pred", tmp_path / "ae"]
        message = fails(1, *args)
        assert "EXIF" in message and "-strip" in message and "resize" not in message
        save_image(tmp_path / "gt/a.png", crop(0))
        assert invoke(*args).exit_code == 0


class TestSmallPictures:
    def test_name_what_takes_them(self, both, lpips_references):
        networks, files = lpips_references
        truths = [crop(number, 28, 28) for number in range(3)]
        found = follow(*both(truths, [noisy(a) for a in truths]),
                       **{"--lpips-net": ["--lpips-weights", files["vgg"]]})  # fmt: skip
        assert list(found) == ["--metrics psnr,ssim", "--lpips-net vgg"]
        assert all(report["n"] == 3 for report in found.values())
        assert found["--metrics psnr,ssim"]["results"][0]["lpips"] is None
        assert mean(found["--lpips-net vgg"], "lpips") > 0

    @pytest.mark.parametrize(
        ("side", "options", "ways"),
        [
            (9, ["--metrics", "psnr,ssim"], ["--metrics psnr", "--ssim-window uniform"]),
            (9, ["--metrics", "ssim"], ["--metrics psnr", "--ssim-window uniform"]),
            (9, [], ["--metrics psnr"]),
            (5, ["--metrics", "ssim"], ["--metrics psnr"]),
            (20, ["--crop-border", "4"], ["--metrics psnr,ssim"]),
            (6, ["--crop-border", "4", "--metrics", "psnr"], ["--crop-border 0 --metrics psnr"]),
        ],
    )
    def test_by_metrics_windows_and_borders(self, both, side, options, ways):
        assert list(follow(*both([crop(0, side, 40)], [noisy(crop(0, side, 40))]), *options)) == ways

    def test_skip_is_offered_where_it_leaves_some(self, both):
        truths = [crop(0), crop(1, 9, 40)]
        found = follow(*both(truths, [noisy(a) for a in truths]), "--metrics", "ssim,psnr")
        assert list(found)[-1] == "--on-mismatch skip" and found["--on-mismatch skip"]["n"] == 1

    def test_where_all_were_skipped_the_others_are_named(self, both):
        args = [*both([crop(0, 28, 28)], [noisy(crop(0, 28, 28))]), "--on-mismatch", "skip"]
        assert "--metrics psnr,ssim" in follow(*args, **{"--lpips-net": ["--metrics", "psnr"]})


class TestNames:
    @pytest.mark.parametrize("made", ["{:02d}_rec.png", "pred {:02d}.png", "{:d}.png", "{:02d}.png.jpg"])
    def test_templates(self, tmp_path, made):
        write(tmp_path / "gt", [crop(number) for number in range(12)])
        for number in range(12):
            save_image(tmp_path / "ae" / made.format(number), noisy(crop(number)))
        found = follow("--gt", tmp_path / "gt", "--pred", tmp_path / "ae", "--metrics", "psnr")
        assert next(iter(found.values()))["n"] == 12

    def test_missing_images_are_skipped(self, both, tmp_path):
        args = both([crop(0), crop(1)], [crop(0)])
        assert follow(*args)["--on-mismatch skip"]["n"] == 1

    def test_unreadable_images_are_skipped(self, both, tmp_path):
        args = both([crop(0), crop(1)], [crop(0), crop(1)])
        truncate(tmp_path / "ae/01.png")
        assert follow(*args)["--on-mismatch skip"]["n"] == 1

    def test_where_nothing_pairs_skip_is_not_offered(self, both, tmp_path):
        args = both([crop(0)], [crop(0)])
        (tmp_path / "ae/00.png").write_bytes(b"no image")
        assert "hint" not in fails(1, "eval", *args)


def test_unreadable_samples_are_skipped(tmp_path):
    for name in ("real", "new"):
        write(tmp_path / name, [crop(number) for number in range(7)])
    truncate(tmp_path / "new/03.png")
    args = ["--gt", tmp_path / "real", "--samples", tmp_path / "new", "--features", "alex"]
    assert follow(*args)["--on-mismatch skip"]["results"][0]["n"] == 6
