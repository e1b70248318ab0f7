"""Fixtures of several rooms: folders of images, and two tiny trained runs."""

import gc
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.images import encoded, picture
from tests.support.vectors import normal

pytest.register_assert_rewrite(
    "tests.soak.runs", *(f"tests.support.{name}" for name in ("data", "processes", "ranks", "trained"))
)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads what this sets
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Spread a run of the whole suite over two processes of one thread each.

    Named files or tests stay in one process, as does all with `-n 0`, and what prints (`-s`) or stops (`--pdb`).
    """
    option = config.option
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    is_worker = hasattr(config, "workerinput")  # which would start workers of its own
    if is_whole and not is_worker and getattr(option, "numprocesses", 0) is None:
        if not (option.usepdb or option.collectonly or option.capture == "no"):
            option.numprocesses, option.dist = min(2, os.cpu_count() or 1), "worksteal"
            os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Processes that tests start get the default action of each signal, wherever pytest itself was started.

    Under nohup, or in the background of a script, signals are ignored, and children inherit that. They don't inherit
    a handler.
    """
    gc.set_threshold(100_000)  # what tests import makes millions of objects that stay
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_collection_finish() -> None:
    """What has been imported is no garbage, and need not be looked through each time that some is looked for."""
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Tests share one cache folder of their own, and never touch the user's."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(autouse=True, scope="session")
def no_drawing() -> Iterator[dict[str, Any]]:
    """Drawing its curves and previews takes most of a tiny run's time; yields what draws them, by name."""
    from aecli.training.observers import previews

    quick = {"draw_curves": lambda rows: b"curves", "draw_rows": lambda rows: Image.new("RGB", (1, 1)),
             "draw_sheet": lambda images: Image.new("RGB", (1, 1)), "PREVIEW_STEPS": 2}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        drawing = {name: getattr(previews, name) for name in quick}
        for name, value in quick.items():
            patch.setattr(previews, name, value)
        yield drawing


@pytest.fixture(autouse=True, scope="session")
def no_flushing() -> Iterator[None]:
    """A run waits two dozen times for the disk, which matters in a power cut alone; what tests that watches itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def flops_once() -> Iterator[None]:
    """Counting the operations of every registered model, as `aecli models` does, takes a second: once is enough."""
    from aecli.models.flops import forward_flops

    counted: dict[tuple[type, str, int], float] = {}

    def remember(model: Any, image_size: int) -> float:
        key = (type(model), repr(model.options), image_size)
        if key not in counted:
            counted[key] = forward_flops(model, image_size)
        return counted[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aecli.runs.catalogue.forward_flops", remember)
        yield


@pytest.fixture(autouse=True, scope="session")
def lpips_once() -> Iterator[None]:
    """Loading the network that validates, and preparing it for a CPU, takes a seventh of a tiny run's time."""
    from aecli.training import validation

    class Once:
        from_net = staticmethod(cache(validation.LPIPS.from_net))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "LPIPS", Once)
        yield


@pytest.fixture(autouse=True, scope="session")
def dry_runs_time_one_step() -> Iterator[None]:
    """A dry run times steps for five seconds; one gives it the same report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aecli.training.dry_run.TIMED_SECONDS", 0.0)
        yield


@pytest.fixture(autouse=True, scope="session")
def fits_to_few_images() -> Iterator[None]:
    """A model that is fitted before its first step takes 8,192 augmented images of 32x32: seconds of each run."""
    from tests.support.processes import FITTED_PIXELS

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aecli.training.inputs.preparation._PIXELS", FITTED_PIXELS)
        yield


@pytest.fixture(autouse=True)
def drawing_where_needed(
    request: pytest.FixtureRequest, no_drawing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests marked `draws` get real pictures."""
    if "draws" in request.keywords:
        for name, value in no_drawing.items():
            monkeypatch.setattr(f"aecli.training.observers.previews.{name}", value)


@pytest.fixture
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than tiny epochs; only what asserts on the pictures (marked `draws`) needs them."""
    if "draws" not in request.keywords:
        monkeypatch.setattr("aecli.training.observers.previews.write_preview", lambda session: None)
        monkeypatch.setattr("aecli.training.observers.previews.PreviewWriter.write_curves", lambda previews: None)


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a PNG under each of the given names and returns their folder."""

    def make(*names: str, folder: str = "images", height: int = 24, width: int = 32) -> Path:
        for seed, name in enumerate(names):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(picture(height, width, seed)))
        return tmp_path / folder

    return make


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images`, runs `runs/vae` and `runs/ae`, the VAE's latents and a KL's weights, for reading only."""
    from tests.support.trained import NARROW, TRAIN, ok, write_images, write_model

    root = tmp_path_factory.mktemp("trained")
    write_images(root / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for model in ("vae", "ae"):  # in this order: `ae` is the newer
            ok("train", model, *TRAIN, "--quiet")
        ok("reconstruct", "--model", "vae", "--out", "reconstructed", "--latents", "runs/latents.safetensors")
    write_model(root / "runs/kl.safetensors", "kl", **NARROW)
    return root


@pytest.fixture
def trained(trained_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with links to the shared `images` and `runs` (vae, ae), which are for reading."""
    for name in ("images", "runs"):
        (tmp_path / name).symlink_to(trained_once / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own(trained: Path) -> Path:
    """As `trained`, with copies of the runs, which may be written to and have no priors yet."""
    shutil.copytree(trained / "runs", trained / "copied", ignore=shutil.ignore_patterns("prior*"))
    (trained / "runs").unlink()
    (trained / "copied").rename(trained / "runs")
    return trained


@pytest.fixture
def run(trained: Path) -> Path:
    """A copy of the VAE's run, `mine/vae`, to be damaged."""
    shutil.copytree((trained / "runs/vae").resolve(), trained / "mine/vae")
    return trained / "mine/vae"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with `images` of its own."""
    from tests.support.trained import write_images

    write_images(tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def lpips_references(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Path]]:
    """The lpips package's networks by name, and files of their backbones' weights under torchvision's names.

    `alex` has the weights that ship with aecli, the others random ones.
    """
    import lpips
    import torch
    from safetensors.torch import load_file, save_file

    from aecli.metrics.network_weights import SHIPPED

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    networks, files = {}, {}
    for net in ("alex", "vgg", "squeeze"):
        with warnings.catch_warnings(action="ignore"):  # torchvision's, about how random weights are asked for
            networks[net] = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        names = {name: f"features.{name.split('.', 1)[1]}" for name in networks[net].net.state_dict()}
        if net == "alex":
            shipped = load_file(SHIPPED[net])
            networks[net].net.load_state_dict({name: shipped[theirs] for name, theirs in names.items()})
        files[net] = folder / f"{net}.safetensors"
        save_file({names[name]: value for name, value in networks[net].net.state_dict().items()}, files[net])
    return networks, files


@pytest.fixture
def real() -> np.ndarray:
    """Vectors (31, 6) of a set, from which `fake` is told apart."""
    return normal(1, 31) + 0.3


@pytest.fixture
def fake() -> np.ndarray:
    """Vectors (24, 6) of another set."""
    return normal(2, 24, deviation=1.4)
