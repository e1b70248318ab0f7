"""A run and its images: it follows them to another place, says what has changed, and is not given others."""

import json
import shutil

import pytest

from aecli.errors import CheckpointError, DataError
from aecli.progress import Notice
from aecli.training.events import Finished, Interrupted
from tests.support.images import encoded, picture
from tests.support.stopping import train_until
from tests.support.trained import assert_same_run, ok_json

pytestmark = pytest.mark.usefixtures("no_pictures")


def run(config, stop_after=None):
    """Train, maybe until that many steps have been taken; the notices that speak of images, and the last report."""
    reports = train_until(config, stop_after)
    return [report.text for report in reports if isinstance(report, Notice) and "images" in report.text], reports[-1]


def record(folder):
    return json.loads((folder / "config.json").read_text())


def rename(folder, tmp_path):
    return folder.rename(tmp_path / "moved")


def zip_whole_under_another_name(folder, tmp_path):
    archive = shutil.make_archive(tmp_path / "backup", "zip", tmp_path, folder.name)
    shutil.rmtree(folder)
    return archive


def put_into_a_folder(folder, tmp_path):
    shutil.move(folder, tmp_path / "outer" / "inner" / "photographs")
    return tmp_path / "outer"


@pytest.fixture
def config(config):
    """At a size at which a batch of one image will do: sets of any size train."""
    return config.replace(image_size=64, epochs=1)


@pytest.mark.parametrize(
    ("move", "out"),
    [(rename, "mine"), (zip_whole_under_another_name, None), (put_into_a_folder, None)],
)
def test_a_run_goes_on_with_its_images_at_another_place(config, photographs, tmp_path, move, out):
    """Bit for bit, by the names under which it has split them, with one note."""
    config = config.replace(out=out and tmp_path / out)
    run(config.replace(out=tmp_path / "whole"))
    _, end = run(config, stop_after=2)
    assert isinstance(end, Interrupted)
    moved = config.replace(data=str(move(photographs, tmp_path)))
    notes, end = run(moved, stop_after=1)
    assert notes == [f"--data {moved.data.source}: the images that the run had in {photographs}"]
    notes, end = run(moved)
    assert notes == [] and isinstance(end, Finished)
    assert_same_run(tmp_path / "whole", end.run.path)
    assert record(end.run.path)["split"] == record(tmp_path / "whole")["split"]
    assert record(end.run.path)["data"]["fingerprint"] == record(tmp_path / "whole")["data"]["fingerprint"]
    assert not (config.run.runs / "vae-2").exists()


def test_the_images_of_a_zip_may_be_unpacked(config, photographs, tmp_path):
    archive = shutil.make_archive(tmp_path / "backup", "zip", tmp_path, photographs.name)
    config = config.replace(data=archive)
    run(config.replace(out=tmp_path / "whole"))
    run(config, stop_after=3)
    (tmp_path / "backup.zip").unlink()
    _, end = run(config.replace(data=str(photographs)))
    assert_same_run(tmp_path / "whole", end.run.path)
    before = set(photographs.iterdir())
    names = ok_json("reconstruct", "--model", end.run.path, "--out", tmp_path / "out")
    assert names["written"] == record(end.run.path)["split"]["val"] and set(photographs.iterdir()) == before


def test_a_finished_run_learns_where_its_images_are_now(config, photographs, tmp_path):
    run(config)
    moved = config.replace(data=str(rename(photographs, tmp_path)))
    notes, end = run(moved)
    assert end.was_finished and len(notes) == 1
    assert record(end.run.path)["options"]["data"] == moved.data.source
    assert ok_json("reconstruct", "--model", end.run.path, "--out", tmp_path / "out")["written"]


def write(folder, *seeds, name="new"):
    for seed in seeds:
        (folder / f"{name}-{seed}.png").write_bytes(encoded(picture(40, 40, seed)))


def test_what_has_changed_is_told_and_kept(config, photographs):
    run(config)
    write(photographs, 90, 91, 92, 93)
    (photographs / "03.png").unlink()
    (photographs / "04.png").write_bytes(encoded(picture(44, 44)))
    notes, end = run(config.replace(epochs=2))
    assert len(notes) == 1 and notes[0].startswith(f"--data {photographs}: ")
    assert notes[0].endswith("4 added (new-90.png, new-91.png, new-92.png, …), 1 taken away (03.png), "
                             "1 of another size (04.png)")  # fmt: skip
    (change,) = record(end.run.path)["changes"]
    assert change == {"source": "data", "step": 3, "added": 4, "removed": 1, "resized": 1}
    notes, end = run(config.replace(epochs=2))
    assert notes == [] and len(record(end.run.path)["changes"]) == 1


@pytest.mark.parametrize("out", [None, "mine"])
def test_other_images_at_the_old_place_are_refused_unless_they_are_allowed(config, photographs, tmp_path, out):
    config = config.replace(out=out and tmp_path / out)
    _, end = run(config)
    assert record(end.run.path)["split"]["val_in_train"] == 0
    for path in sorted(photographs.iterdir())[:9]:
        path.rename(path.with_stem(f"other-{path.stem}"))
    before = (end.run.path / "config.json").read_bytes()
    with pytest.raises(CheckpointError, match="(?s)9 added .*9 taken away .*\nhint: --allow-changed-data"):
        run(config)
    assert (end.run.path / "config.json").read_bytes() == before
    notes, end = run(config.replace(allow_changed_data=True, epochs=2))
    assert len(notes) == 1 and "9 added" in notes[0] and end.epochs == 2
    kept = record(end.run.path)
    assert kept["options"]["allow_changed_data"] and kept["changes"][0]["added"] == 9
    assert run(config.replace(epochs=2))[1].was_finished


def test_another_place_with_most_of_the_images_is_the_runs_only_where_the_old_one_is_gone(
    config, photographs, tmp_path
):
    run(config)
    grown = shutil.copytree(photographs, tmp_path / "grown")
    write(grown, 90)
    _, end = run(config.replace(data=str(grown)))
    assert end.run.path.name == "vae-2"
    write(photographs, 91)
    notes, end = run(config.replace(data=str(rename(photographs, tmp_path)), epochs=2))
    assert end.run.path.name == "vae" and "1 added (new-91.png)" in notes[0]


@pytest.mark.parametrize("change", ["moved", "grown", "moved and grown"])
def test_an_older_run_has_no_list_of_its_images(config, photographs, tmp_path, change):
    _, end = run(config.replace(epochs=1, out=tmp_path / "mine"))
    (end.run.path / "images.csv").unlink()
    if "grown" in change:
        write(photographs, 90)
    place = rename(photographs, tmp_path) if "moved" in change else photographs
    config = config.replace(epochs=2, out=tmp_path / "mine", data=str(place))
    if change == "moved and grown":
        with pytest.raises(CheckpointError, match="15 then, 16 now"):
            run(config)
    else:
        notes, _ = run(config)
        assert ("15 then, 16 now" in notes[0]) == (change == "grown")
        assert (end.run.path / "images.csv").read_text().count("\n") == 1 + len(list(place.iterdir()))


def test_the_images_of_a_package_are_known_by_its_name(config, tmp_path):
    config = config.replace(data="demo", image_size=32, batch_size=64, epochs=1, out=tmp_path / "mine")
    run(config)
    with pytest.raises(CheckpointError, match=r"not the images that .*mine was trained on \(demo\)"):
        run(config.replace(data=str(tmp_path / "photographs")))


def test_validation_images_that_stand_in_training_too_are_told_once_with_their_count(config, photographs, tmp_path):
    for path in sorted(photographs.iterdir()):
        shutil.copy(path, path.with_stem(f"{path.stem}-again"))
    notes, end = run(config)
    held_out = record(end.run.path)["split"]
    assert 0 < held_out["val_in_train"] <= held_out["val"]
    assert [text for text in notes if f"{held_out['val_in_train']} of {held_out['val']} validation images" in text]
    notes, end = run(config.replace(epochs=2))
    assert notes == [] and record(end.run.path)["split"] == held_out
    notes, end = run(config.replace(val_data=str(photographs)))
    assert any("30 of 30 validation images stand in training too" in text for text in notes)


def test_images_that_are_gone_are_told_before_anything_is_made(config, photographs, tmp_path):
    rename(photographs, tmp_path)
    with pytest.raises(DataError, match=f"--data {photographs}: no such"):
        run(config)
    assert not config.run.runs.exists()
