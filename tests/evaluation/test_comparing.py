"""The protocol of an evaluation, and `aecli compare` of two evaluations made apart."""

import csv
import json
import shutil

import pytest

from tests.support.images import save_image
from tests.support.paired import crop
from tests.support.trained import fails, ok, ok_json

METRICS = ["psnr", "ssim"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Six images, copies of two qualities, of which one is identical, and the JSON of each copy's evaluation."""
    monkeypatch.chdir(tmp_path)
    for index in range(6):
        pixels = crop(index)
        save_image(tmp_path / f"gt/{index}.png", pixels)
        save_image(tmp_path / f"low/{index}.jpg", pixels, quality=10)
        save_image(tmp_path / f"high/{index}.jpg", pixels, quality=60)
    (tmp_path / "low/3.jpg").unlink()
    save_image(tmp_path / "low/3.png", crop(3))
    for name in ("low", "high"):
        (tmp_path / f"{name}.json").write_text(ok(*evaluation(name), "--json").stdout)
    return tmp_path


def evaluation(*names, gt="gt"):
    return ["eval", "--gt", gt, *(word for name in names for word in ("--pred", name)), "--metrics", ",".join(METRICS)]


def change(path, edit):
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))


class TestCompare:
    def test_it_finds_what_one_evaluation_of_both_finds(self, place):
        (expected,) = ok_json(*evaluation("low", "high"))["comparisons"]
        found = ok_json("compare", "low.json", "high.json")
        (pair,) = found["comparisons"]
        assert found["n"] == 6 and found["files"] == ["low.json", "high.json"]
        assert pair == {name: value for name, value in expected.items() if name != "lpips"}
        assert pair["psnr"]["images"] == 5 and pair["psnr"]["wins_a"] == 1  # the identical one

    def test_images_pair_by_name_whatever_their_order(self, place):
        before = ok_json("compare", "low.json", "high.json")

        def turn(document):
            each = document["per_image"]
            each["names"].reverse()
            for column in each["values"]["high"].values():
                column.reverse()

        change(place / "high.json", turn)
        assert ok_json("compare", "low.json", "high.json") == before

    def test_predictions_of_one_name_are_compared_with_each_other(self, place):
        (place / "both.json").write_text(ok(*evaluation("low", "high"), "--json").stdout)
        pairs = ok_json("compare", "both.json", "high.json")["comparisons"]
        assert [(pair["a"], pair["b"]) for pair in pairs] == [("high (both.json)", "high (high.json)")]
        assert pairs[0]["ssim"]["ties"] == 6

    def test_formats(self, place):
        expected = ok_json("compare", "low.json", "high.json")["comparisons"][0]["ssim"]
        printed = ok("compare", "low.json", "high.json").stdout
        assert f"{expected['mean_difference']:+.4f}" in printed and "over 5 of 6" in printed
        (row,) = csv.DictReader(ok("compare", "low.json", "high.json", "--format", "csv").stdout.splitlines())
        assert float(row["ssim_ci95_low"]) == expected["ci95"][0]
        for style in ("markdown", "latex"):
            assert f"{expected['mean_difference']:+.4f}" in ok("compare", "low.json", "high.json", "--format",
                                                               style).stdout  # fmt: skip


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        ("options", "field"),
        [(["--crop-border", "1"], "crop_border (0, 1)"), (["--metrics", "psnr"], "metrics.ssim"),
         (["--ssim-window", "uniform"], "metrics.ssim"), (["--image-size", "64", "--on-mismatch", "resize"], "fit"),
         (["--background", "black"], "background (white, black)"), (["--metrics", "psnr,ssim,lpips"], "weights")],
        ids=lambda value: value[0] if isinstance(value, list) else None,
    )  # fmt: skip
    def test_other_protocols_by_field(self, place, options, field):
        (place / "other.json").write_text(ok(*evaluation("low"), "--json", *options).stdout)
        message = fails(1, "compare", "low.json", "other.json")
        assert "other protocols" in message and field in message and "n (" not in message

    def test_fewer_images_are_another_protocol_and_other_names_are_other_images(self, place):
        shutil.copytree("gt", "fewer")
        (place / "fewer/0.png").unlink()
        (place / "few.json").write_text(ok(*evaluation("low", gt="fewer"), "--on-mismatch", "skip", "--json").stdout)
        assert "n (6, 5)" in fails(1, "compare", "low.json", "few.json")
        change(place / "high.json", lambda document: document["per_image"]["names"].__setitem__(0, "other.png"))
        assert "1 of 6 are in one alone (0.png)" in fails(1, "compare", "low.json", "high.json")

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"protocol": {}}', '{"n": NaN}', "[" * 99])
    def test_files_that_are_no_evaluation(self, place, content):
        (place / "odd.json").write_text(content)
        assert "odd.json is not the JSON of an evaluation" in fails(1, "compare", "low.json", "odd.json")

    def test_files_that_are_not_there_or_damaged(self, place):
        assert "absent.json: No such file" in fails(1, "compare", "absent.json", "low.json")
        change(place / "high.json", lambda document: document["per_image"]["values"]["high"]["ssim"].pop())
        assert "high.json is damaged: ssim of high" in fails(1, "compare", "low.json", "high.json")


class TestProtocol:
    def test_its_hash_is_of_what_was_done_and_not_of_paths(self, place):
        shutil.copytree("gt", "elsewhere")
        first = ok_json(*evaluation("low"))["protocol"]
        second = ok_json(*evaluation("high", gt="elsewhere"), "--on-mismatch", "skip", "--batch-size", "2")["protocol"]
        assert first == second and len(first["sha256"]) == 12
        assert (first["n"], first["image_size"], first["data_range"]) == (6, None, 255)
        assert ok_json(*evaluation("low"), "--crop-border", "2")["protocol"]["sha256"] != first["sha256"]

    def test_it_says_what_was_resized_and_which_weights(self, place):
        found = ok_json("eval", "--gt", "gt", "--pred", "low", "--image-size", "32", "--fit", "crop", "--on-mismatch",
                        "resize")  # fmt: skip
        protocol = found["protocol"]
        assert (protocol["image_size"], protocol["fit"], protocol["predictions"]) == (32, "crop", "resized")
        assert protocol["weights"] == {"lpips_alex_sha256": found["versions"]["lpips_alex_sha256"]}

    def test_it_is_printed_and_in_the_page(self, place):
        sha256 = ok_json(*evaluation("low"))["protocol"]["sha256"]
        for options in ([], ["--format", "markdown"], ["--format", "latex"]):
            assert f"protocol {sha256}: n 6; " in ok(*evaluation("low"), *options, "--report", "page.html").stdout
        assert f"protocol {sha256}: n 6; " in (place / "page.html").read_text()
