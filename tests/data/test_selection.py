"""What a source passes over: counted and named, and never taken for data."""

import zipfile

import pytest

from aecli.configs import TrainConfig
from aecli.data.sources.registry import list_images, require_source
from aecli.errors import ConfigError, DataError
from aecli.progress import Notice
from tests.support.images import encoded, picture


@pytest.fixture
def listed():
    """Lists a source: the names, and the notices."""

    def run(source, outputs=()):
        notices = []
        images = list_images(str(source), notices.append, outputs)
        assert all(isinstance(notice, Notice) for notice in notices)
        return [image.name for image in images], [notice.text for notice in notices]

    return run


def test_images_of_kinds_that_are_not_read_are_counted_and_named(image_folder, listed):
    folder = image_folder("a.png")
    for name in ("1.heic", "2.HEIC", "3.heic", "4.heic", "clip.mp4", "array.npy", "notes.txt", "README"):
        (folder / name).write_bytes(b"x")
    names, notices = listed(folder)
    assert names == ["a.png"] and len(notices) == 3
    (heic,) = [text for text in notices if ".heic" in text]
    assert "4 .heic files not read" in heic and "magick" in heic and heic.lower().count("heic,") == 3
    assert any("1 .mp4 file not read: clip.mp4 (extract its frames" in text.replace("their", "its") for text in notices)


def test_a_folder_of_nothing_else_says_what_it_holds(tmp_path):
    (tmp_path / "1.heic").write_bytes(b"x")
    with pytest.raises(DataError, match="holds no images\nhint: .*1 .heic file not read"):
        list_images(str(tmp_path))


@pytest.mark.parametrize(
    "system", ["@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", ".Trash-1000", "System Volume Information"]
)
def test_folders_of_the_system_are_left_out(image_folder, listed, tmp_path, system):
    folder = image_folder("a.png", f"{system}/b.png", f"deep/{system}/c.png")
    names, notices = listed(folder)
    assert names == ["a.png"]
    assert system.startswith(".") or [f"2 system folders left out: {system}" in text for text in notices] == [True]
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    assert listed(tmp_path / "z.zip")[0] == ["a.png"]


def test_runs_and_the_commands_own_outputs_are_no_data(image_folder, listed):
    folder = image_folder("a.png", "runs/vae/curves.png", "runs/vae/previews/0001.png", "out/a.png", "grid.png")
    for name in ("config.json", "metrics.csv"):
        (folder / "runs" / "vae" / name).write_text("{}")
    names, notices = listed(folder, [folder / "out", folder / "grid.png"])
    assert names == ["a.png"]
    assert [text for text in notices if "3 outputs of aecli left out" in text]
    names, _ = listed(folder / "runs" / "vae" / "previews")  # named itself, it is a folder like any other
    assert names == ["0001.png"]


def test_the_pictures_of_a_run_among_the_data(image_folder, listed):
    folder = image_folder("a.png", "curves.png", "previews/0001.png")
    for name in ("config.json", "last.safetensors"):
        (folder / name).write_text("{}")
    assert listed(folder)[0] == ["a.png"]


def test_a_single_image_is_a_source(tmp_path, listed):
    (tmp_path / "a.jpg").write_bytes(encoded(picture(), "JPEG"))
    assert listed(tmp_path / "a.jpg") == (["a.jpg"], [])
    (image,) = list_images(str(tmp_path / "a.jpg"))
    assert image.load() == (tmp_path / "a.jpg").read_bytes()


def test_a_source_that_is_not_there(tmp_path):
    for there in ("demo", str(tmp_path), "torchvision:CIFAR10"):
        require_source(there, "--data")
    for absent in (str(tmp_path / "gone"), "nonsense:x"):
        with pytest.raises(DataError):
            require_source(absent, "--data")


def test_the_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = TrainConfig("vae", data="~/photos", out="~/run", autoencoder="~/vae.safetensors")
    assert config.data.source == str(tmp_path / "photos") and config.run.out == tmp_path / "run"
    assert config.model.autoencoder == str(tmp_path / "vae.safetensors")


@pytest.mark.parametrize("colour", ["red", "#12345", "#1234567", "White", "#gggggg"])
def test_backgrounds_are_white_black_or_hexadecimal(colour):
    assert TrainConfig("vae", background="#0a1B2c").data.background == "#0a1B2c"
    with pytest.raises(ConfigError, match="--background"):
        TrainConfig("vae", background=colour)
