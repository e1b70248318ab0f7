import numpy as np
import pytest

from aecli.errors import ConfigError, DataError
from aecli.evaluation.pairing import Prediction, pair_sources, parse_predictions
from tests.support.images import save_image


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

    def test_no_name_in_common_shows_one_of_each(self, tmp_path):
        truth = write(tmp_path / "gt", "deep/a.png")
        other = write(tmp_path / "ae", "a.png")
        with pytest.raises(DataError, match=r"(?s)--pred ae.*'a\.png'.*'deep/a\.png'"):
            pair_sources(truth, [Prediction("ae", other)])
