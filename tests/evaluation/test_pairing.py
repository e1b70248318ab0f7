import io
import shlex
import tarfile
import unicodedata
import zipfile

import numpy as np
import pytest

from aecli.errors import ConfigError, DataError
from aecli.evaluation.pairing import Prediction, pair_sources, parse_predictions
from aecli.progress import Notice
from tests.support.images import encoded, save_image


def write(folder, *names):
    for name in names:
        save_image(folder / name, np.zeros((8, 8, 3), dtype=np.uint8))
    return str(folder)


class TestPredictions:
    @pytest.mark.parametrize(
        ("spec", "name", "source"),
        [
            ("ae=out/ae", "ae", "out/ae"), ("out/ae", "ae", "out/ae"), ("out/ae/", "ae", "out/ae/"),
            ("out/ae.ZIP", "ae", "out/ae.ZIP"), ("my [model]=dir", "my [model]", "dir"), ("a=b=c", "a", "b=c"),
            ("./a=b", "a=b", "./a=b"), ("out/lr=1e-3", "lr=1e-3", "out/lr=1e-3"), ("demo", "demo", "demo"),
            ("torchvision:CIFAR10", "torchvision:CIFAR10", "torchvision:CIFAR10"),
            ("t=torchvision:CIFAR10", "t", "torchvision:CIFAR10"),
        ],
    )  # fmt: skip
    def test_name_and_source(self, spec, name, source):
        assert parse_predictions([spec]) == [Prediction(name, source)]

    def test_here_and_above_have_the_folders_name(self, tmp_path, monkeypatch):
        (tmp_path / "outer" / "inner").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "outer" / "inner")
        assert [each.name for each in parse_predictions([".", ".."])] == ["inner", "outer"]

    @pytest.mark.parametrize("spec", ["=dir", "ae=", ""])
    def test_empty_parts_are_refused(self, spec):
        with pytest.raises(ConfigError, match="NAME=.SOURCE"):
            parse_predictions([spec])

    def test_names_must_differ(self):
        with pytest.raises(ConfigError, match="(?s)'ae' is already used.*--pred NAME=SOURCE"):
            parse_predictions(["one/ae", "two/ae"])


class TestPairs:
    def test_by_relative_path_without_suffix(self, tmp_path):
        truth = write(tmp_path / "gt", "a.png", "x/b.png", "x/c.v1.png", "[d].png")
        other = write(tmp_path / "ae", "x/b.jpg", "a.bmp", "x/c.v1.webp", "[d].jpeg")
        pairing = pair_sources(truth, [Prediction("ae", other)])
        found = {pair.name: pair.predictions[0].name for pair in pairing.pairs}
        assert found == {"a.png": "a.bmp", "x/b.png": "x/b.jpg", "x/c.v1.png": "x/c.v1.webp", "[d].png": "[d].jpeg"}
        assert pairing.unpaired == []

    def test_what_does_not_pair_is_named_with_its_reason(self, tmp_path):
        truth = write(tmp_path / "gt", "a.png", "b.png", "c.png", "c.jpg", "d.png")
        ae = write(tmp_path / "ae", "a.png", "c.png", "d.png", "e.png")
        vae = write(tmp_path / "vae", "a.png", "b.png", "c.png", "d.png", "d.jpg")
        pairing = pair_sources(truth, [Prediction("ae", ae), Prediction("vae", vae)])
        assert [pair.name for pair in pairing.pairs] == ["a.png"]
        found = {(each.kind, each.prediction, each.name) for each in pairing.unpaired}
        assert found == {
            ("duplicate", None, "c.jpg"),
            ("missing", "ae", "b.png"),
            ("extra", "ae", "e.png"),
            ("duplicate", "vae", "d.jpg"),
        }
        reasons = {each.name: each.reason for each in pairing.unpaired}
        assert reasons["c.jpg"] == "same as 'c.png'"

    def test_what_is_there_in_a_format_that_is_not_read_is_not_missing(self, tmp_path):
        truth, other = write(tmp_path / "gt", "a.png", "b.png", "c.png"), write(tmp_path / "ae", "a.png")
        (tmp_path / "ae/b.heic").write_bytes(b"x")
        pairing = pair_sources(truth, [Prediction("ae", other)])
        assert {(each.kind, each.name) for each in pairing.unpaired} == {("unread", "b.png"), ("missing", "c.png")}
        assert "'b.heic' is there" in next(each.reason for each in pairing.unpaired if each.kind == "unread")

    def test_no_name_in_common_shows_one_of_each(self, tmp_path):
        truth = write(tmp_path / "gt", "deep/a.png")
        other = write(tmp_path / "ae", "b.png")
        with pytest.raises(DataError, match=r"(?s)--pred ae.*'b\.png'.*'deep/a\.png'"):
            pair_sources(truth, [Prediction("ae", other)])


def pairs_of(truth, *others, templates=(), listen=lambda _report: None):
    """The pairs by name, of names, and what is left over."""
    predictions = [Prediction(f"p{number}", str(other)) for number, other in enumerate(others)]
    pairing = pair_sources(str(truth), predictions, templates, listen)
    found = {pair.name: tuple(image.name for image in pair.predictions) for pair in pairing.pairs}
    return found, pairing


def archived(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, encoded(np.zeros((8, 8, 3), np.uint8)))
    return path


def tarred(path, *names):
    content = encoded(np.zeros((8, 8, 3), np.uint8))
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


class TestNames:
    def test_are_compared_in_one_form_of_unicode(self, tmp_path):
        names = ["caf\u00e9", "\u00fcber", "plain"]
        truth = write(tmp_path / "gt", *(unicodedata.normalize("NFC", name) + ".png" for name in names))
        other = write(tmp_path / "ae", *(unicodedata.normalize("NFD", name) + ".png" for name in names))
        found, pairing = pairs_of(truth, other)
        assert len(found) == 3 and pairing.unpaired == []

    @pytest.mark.parametrize("depth", ["results/", "results/png/"])
    def test_a_folder_around_everything_is_left_off(self, tmp_path, depth):
        truth = write(tmp_path / "gt", "a.png", "x/b.png")
        inner = [f"{depth}a.png", f"{depth}x/b.png"]
        folder, zipped = write(tmp_path / "ae", *inner), archived(tmp_path / "r (1).zip", *inner)
        heard = []
        found, _ = pairs_of(truth, folder, zipped, listen=heard.append)
        assert found == {"a.png": (inner[0], inner[0]), "x/b.png": (inner[1], inner[1])}
        assert [each.text for each in heard if isinstance(each, Notice)] == [
            f"--pred p{number}: paired with --gt without {depth}" for number in (0, 1)
        ]
        assert len(pairs_of(folder, truth)[0]) == len(pairs_of(folder, zipped)[0]) == 2

    def test_a_folder_that_both_have_stays(self, tmp_path):
        truth, other = write(tmp_path / "gt", "x/a.png"), write(tmp_path / "ae", "x/a.png", "y/a.png")
        assert pairs_of(truth, other)[0] == {"x/a.png": ("x/a.png",)}

    def test_shards_pair_by_keys_that_are_unique_over_all(self, tmp_path):
        tarred(tmp_path / "t/s-0.tar", "a.png", "b.png")
        tarred(tmp_path / "t/s-1.tar", "c.png")
        tarred(tmp_path / "p/s-00.tar", "c.png")
        tarred(tmp_path / "p/s-01.tar", "b.png", "a.png")
        truth, other = tmp_path / "t/s-*.tar", tmp_path / "p/s-*.tar"
        flat = write(tmp_path / "flat", "a.png", "b.png", "c.png")
        found, pairing = pairs_of(truth, other, flat)
        assert found == {
            "s-0/a.png": ("s-01/a.png", "a.png"), "s-0/b.png": ("s-01/b.png", "b.png"),
            "s-1/c.png": ("s-00/c.png", "c.png"),
        }  # fmt: skip
        assert pairing.unpaired == []
        assert len(pairs_of(flat, truth)[0]) == 3

    def test_keys_that_several_shards_have_do_not_pair(self, tmp_path):
        tarred(tmp_path / "t/s-0.tar", "a.png")
        tarred(tmp_path / "t/s-1.tar", "a.png")
        with pytest.raises(DataError, match="no image has the name"):
            pairs_of(tmp_path / "t/s-*.tar", write(tmp_path / "flat", "a.png"))

    def test_single_files_pair_whatever_their_names(self, tmp_path):
        write(tmp_path, "one.png", "two.jpg", "three.png")
        assert pairs_of(tmp_path / "one.png", tmp_path / "two.jpg", tmp_path / "three.png")[0] == {
            "one.png": ("two.jpg", "three.png")
        }

    def test_predictions_inside_the_ground_truth_are_left_out_of_it(self, tmp_path):
        truth = write(tmp_path / "gt", "a.png", "b.png", "out/a.png", "out/b.png")
        heard = []
        found, pairing = pairs_of(truth, f"{truth}/out", listen=heard.append)
        assert found == {"a.png": ("a.png",), "b.png": ("b.png",)} and pairing.unpaired == []
        assert "2 images in out/ left out" in heard[0].text
        nested = write(tmp_path / "only", "out/a.png")
        assert pairs_of(nested, f"{nested}/out")[0] == {"out/a.png": ("a.png",)}, "else nothing would be left"


TRUTHS = [f"{number:04d}" for number in range(12)]


@pytest.mark.parametrize(
    ("made", "template"),
    [
        ("{:04d}_rec.png", "{}_rec"),
        ("pred_{:04d}.png", "pred_{}"),
        ("pre{:04d}-x4.png", "pre{}-x4"),
        ("{:d}.png", "{:d}"),
        ("out_{:06d}.png", "out_00{}"),
        ("{:04d}.jpg.png", "{}.jpg"),
    ],
)
class TestTemplates:
    def test_are_found_and_pair(self, tmp_path, made, template):
        truth = write(tmp_path / "gt", *(f"{name}.jpg" for name in TRUTHS))
        names = [made.format(number) for number in range(12)]
        other, plain = write(tmp_path / "ae", *names), write(tmp_path / "plain", *(f"{name}.png" for name in TRUTHS))
        with pytest.raises(DataError) as caught:
            pairs_of(truth, plain, other)
        assert str(caught.value).splitlines()[1] == f"hint: --pred-name {shlex.quote(template)} pairs them"
        found, pairing = pairs_of(truth, other, plain, templates=[template])
        assert found == {
            f"{name}.jpg": (made_name, f"{name}.png") for name, made_name in zip(TRUTHS, names, strict=True)
        }
        assert pairing.unpaired == []

    def test_are_found_in_subfolders_and_of_some(self, tmp_path, made, template):
        truth = write(tmp_path / "gt", *(f"x/{name}.jpg" for name in TRUTHS), "y/other.jpg")
        other = write(tmp_path / "ae", *(f"x/{made.format(number)}" for number in range(12)))
        with pytest.raises(DataError) as caught:
            pairs_of(truth, other)
        assert f"--pred-name {shlex.quote(template)} --on-mismatch skip pairs most" in str(caught.value)
        found, pairing = pairs_of(truth, other, templates=[template])
        assert len(found) == 12 and [each.name for each in pairing.unpaired] == ["y/other.jpg"]


class TestMoreTemplates:
    @pytest.mark.parametrize(
        ("named", "made", "template"),
        [
            ("gt_{:04d}.png", "pred_{:04d}.png", "gt_{}=pred_{}"),
            ("{:02d}_real_A.png", "{:02d}_fake_B.png", "{}_real_A={}_fake_B"),
            ("IMG_{:03d}.jpg", "img_{:d}.png", "IMG_{}=img_{:d}"),
            ("{:02d}.png", "{:02d}/out.png", "{}/out"),
            ("x/gt-{:02d}.png", "x/{:02d}.png", "gt-{}={}"),
        ],
    )
    def test_names_of_both_sides(self, tmp_path, named, made, template):
        truth = write(tmp_path / "gt", *(named.format(number) for number in range(12)))
        other = write(tmp_path / "ae", *(made.format(number) for number in range(12)))
        with pytest.raises(DataError) as caught:
            pairs_of(truth, other)
        assert str(caught.value).splitlines()[1] == f"hint: --pred-name {shlex.quote(template)} pairs them"
        found, pairing = pairs_of(truth, other, templates=[template])
        assert found == {named.format(number): (made.format(number),) for number in range(12)}
        assert pairing.unpaired == []

    def test_where_a_few_names_are_the_same_anyway(self, tmp_path):
        truth = write(tmp_path / "gt", *(f"{number:02d}.png" for number in range(15)))
        other = write(tmp_path / "ae", *(f"{number}.png" for number in range(15)))
        found, pairing = pairs_of(truth, other)
        assert len(found) == 5 and pairing.renaming == "--pred-name '{:d}' pairs them"

    def test_numbers_that_are_padded(self, tmp_path):
        truth = write(tmp_path / "gt", *(f"img{number}.png" for number in range(15)))
        other = write(tmp_path / "ae", *(f"img{number:03d}_out.png" for number in range(15)))
        with pytest.raises(DataError, match=r"--pred-name '\{:03d\}_out' pairs them"):
            pairs_of(truth, other)
        assert len(pairs_of(truth, other, templates=["{:03d}_out"])[0]) == 15

    def test_doubled_suffixes_of_several_kinds(self, tmp_path):
        truth = write(tmp_path / "gt", "a.jpg", "b.png", "c.webp")
        other = write(tmp_path / "ae", "a.jpg.png", "b.png.png", "c.webp.png")
        with pytest.raises(DataError, match=r"--pred-name '\{name\}' pairs them"):
            pairs_of(truth, other)
        assert len(pairs_of(truth, other, templates=["{name}"])[0]) == 3

    def test_predictions_of_different_conventions(self, tmp_path):
        truth = write(tmp_path / "gt", *(f"{name}.png" for name in TRUTHS))
        one = write(tmp_path / "one", *(f"{name}_a.png" for name in TRUTHS))
        two = write(tmp_path / "two", *(f"b_{name}.png" for name in TRUTHS))
        with pytest.raises(DataError, match=r"--pred-name '\{\}_a' --pred-name 'b_\{\}' pairs them"):
            pairs_of(truth, one, two)
        assert len(pairs_of(truth, one, two, templates=["{}_a", "b_{}"])[0]) == 12

    def test_one_by_which_nothing_is_named_is_told(self, tmp_path):
        truth, other = write(tmp_path / "gt", "a.png"), write(tmp_path / "ae", "a.png")
        heard = []
        assert len(pairs_of(truth, other, templates=["{}_rec"], listen=heard.append)[0]) == 1
        assert [each.text for each in heard] == ["--pred-name {}_rec: no prediction is named so"]

    def test_names_that_no_terminal_shows_are_no_template(self, tmp_path):
        truth = write(tmp_path / "gt", *(f"{name}.png" for name in TRUTHS))
        other = write(tmp_path / "ae", *(f"{name}\n\x1b[31m.png" for name in TRUTHS))
        with pytest.raises(DataError) as caught:
            pairs_of(truth, other)
        assert len(str(caught.value).splitlines()) == 2 and "\x1b" not in str(caught.value)

    def test_chance_is_no_convention(self, tmp_path):
        truth = write(tmp_path / "gt", *(f"{number}.png" for number in range(9)))
        other = write(tmp_path / "ae", *(f"photo {number * 37 + 1000}.png" for number in range(9)))
        with pytest.raises(DataError) as caught:
            pairs_of(truth, other)
        assert "--pred-name" not in str(caught.value)
