"""Training says what was done to its images, keeps it in config.json, and goes on without broken ones if asked to."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from aecli.errors import DataError
from aecli.progress import Notice
from tests.support.images import picture
from tests.training.test_loop import run

pytestmark = pytest.mark.usefixtures("no_pictures")


def texts(reports):
    return [report.text for report in reports if isinstance(report, Notice)]


@pytest.fixture
def transparent(photographs):
    """The photographs, one of which is transparent on its left half."""
    pixels = np.dstack([picture(40, 40), np.full((40, 40), 255, np.uint8)])
    pixels[:, :20, 3] = 0
    Image.fromarray(pixels).save(photographs / "00.png")
    return photographs


@pytest.mark.parametrize("gigabytes", ["", "0"])
def test_conversions_are_told_once_and_kept(config, transparent, monkeypatch, gigabytes):
    monkeypatch.setenv("AECLI_CACHE_GB", gigabytes or "1")  # 0: decoded on the fly, and told after the first epoch
    for epochs in (1, 2):
        reports, end = run(config.replace(epochs=epochs, background="black"))
        told = [text for text in texts(reports) if "transparency laid over black" in text]
        assert len(told) == 1 and told[0].endswith("1 image with transparency laid over black (--background): 00.png")
    record = json.loads((end.run.path / "config.json").read_text())
    expected = {"background": {"images": 1, "names": ["00.png"]}}
    assert record["data"]["conversions"] == (None if gigabytes else expected)
    assert record["options"]["background"] == "black"


def test_the_background_is_part_of_the_run(config, transparent):
    _, white = run(config.replace(epochs=1))
    _, black = run(config.replace(epochs=1, background="black"))
    assert (white.run.path.name, black.run.path.name) == ("vae", "vae-2")


def test_many_broken_images_are_listed_in_a_file_and_skipped_when_asked(config, photographs, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = [f"broken{number}.png" for number in range(8)]
    for name in names:
        (photographs / name).write_bytes(b"<html>")
    with pytest.raises(DataError, match="8 of 23 images can't be decoded.*\nhint: .*--skip-broken") as caught:
        run(config)
    listed = str(caught.value).rpartition("listed in ")[2]
    with open(listed, encoding="utf-8") as file:
        assert [line.split("\t")[0] for line in file] == names
    reports, end = run(config.replace(epochs=1, skip_broken=True))
    assert any("skipped 8 of 23 images" in text for text in texts(reports))
    assert json.loads((end.run.path / "config.json").read_text())["options"]["skip_broken"] is True


def test_data_that_is_gone_is_said_to_be_gone(config, photographs, tmp_path):
    named = config.replace(out=tmp_path / "mine", epochs=1)
    run(named)
    shutil.move(photographs, tmp_path / "unmounted")
    with pytest.raises(DataError, match=f"--data {photographs}: no such folder"):
        run(named.replace(epochs=2))
    with pytest.raises(DataError, match="--val-data elsewhere.zip: no such"):
        run(named.replace(data="demo", val_data="elsewhere.zip", epochs=2))


def test_a_single_image_is_said_to_be_too_few(config, tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    Image.fromarray(picture(40, 40)).save(folder / "a.png")
    with pytest.raises(DataError, match="a single image is left to train on"):
        run(config.replace(data=str(folder)))


def test_a_run_below_its_data_does_not_train_on_its_own_pictures(config, photographs):
    out = photographs / "here" / "run"
    _, end = run(config.replace(out=out, epochs=1))
    (out / "previews").mkdir(exist_ok=True)
    Image.fromarray(picture(40, 40)).save(out / "curves.png")
    Image.fromarray(picture(40, 40)).save(out / "previews" / "0001.png")
    reports, _ = run(config.replace(out=out, epochs=2))
    assert not [text for text in texts(reports) if "are not the ones that this run began with" in text]
    assert any("left out" in text for text in texts(reports))
