"""Results don't depend on luck: workers, the moment a thread gets its turn, the order of a listing, the locale.

`pytest -m soak tests/soak/test_results.py -s` repeats all of it many times, and prints by how much what may differ
(the last bits of a number, with the images in its batch) does.
"""

import csv
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aecli.configs import EvalConfig, ReconstructConfig
from aecli.data.batches import epoch_order, iterate
from aecli.data.decoding import decode as decoding
from aecli.data.orientations import flips
from aecli.data.packs.on_the_fly import OnTheFly
from aecli.data.sources.registry import list_images
from aecli.evaluation.paired import evaluate
from aecli.inference.reconstruct import reconstruct
from aecli.metrics.lpips import _NETWORKS
from tests.support.trained import TRAIN, assert_same_run, png, pngs, write_images

SIZES = [(40, 48), (33, 64), (64, 64), (50, 37)]


@pytest.fixture
def mixed(trained):
    """Images of several sizes, and two predictions of them."""
    for index, (height, width) in enumerate(SIZES):
        names = [f"{index}-{number}" for number in range(index + 3)]
        write_images(trained / "gt", names, height, width)
        write_images(trained / "pred", [*names[1:], names[0]], height, width)
        write_images(trained / "more", [*names[2:], *names[:2]], height, width)
    return trained


@contextmanager
def jitter(seed: int) -> Iterator[None]:
    """Have every image wait for a moment before it is decoded, and listings of folders come in any order."""
    chance = random.Random(seed)
    original, scan = decoding.check_size, os.scandir

    def late(*arguments):
        time.sleep(chance.random() * 0.004)
        return original(*arguments)

    @contextmanager
    def shuffled(path="."):
        with scan(path) as entries:
            found = list(entries)
        chance.shuffle(found)
        yield iter(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "check_size", late)
        patch.setattr(os, "scandir", shuffled)
        yield


def digest(folder: Path) -> str:
    """Of all files below, names and contents."""
    texts = [f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}"
             for path in sorted(folder.rglob("*")) if path.is_file()]  # fmt: skip
    assert texts
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def numbers(place: Path, **options) -> tuple[str, np.ndarray]:
    """What `eval` says: all of it as text, and each image's numbers (rows, metrics)."""
    csv_file = place / "numbers.csv"
    config = EvalConfig(gt="gt", pred=("pred", "more"), on_mismatch="resize", per_image=csv_file, **options)
    document = json.dumps(evaluate(config).to_json())
    rows = list(csv.DictReader(csv_file.read_text().splitlines()))
    found = np.array([[float(row[name] or "nan") for name in ("psnr", "ssim", "lpips")] for row in rows])
    csv_file.unlink()
    return document, found


def random_weights(net: str) -> Path:
    """A file of weights for a network whose own don't ship."""
    torch.manual_seed(1)
    backbone = torch.nn.Sequential(*_NETWORKS[net][1]())
    path = Path(f"{net}.safetensors")
    save_file({f"features.{name}": value for name, value in backbone.state_dict().items()}, path)
    return path


# Nothing at all may differ


def check_workers_and_timing(place: Path, count: int) -> None:
    first = None
    for seed in range(count):
        workers = (1, 2, 3, 8)[seed % 4]
        with jitter(seed):
            found = [numbers(place, batch_size=3, workers=workers)[0]]
            for native in (False, True):
                shutil.rmtree(place / "out", ignore_errors=True)
                config = ReconstructConfig(
                    "vae", data="gt", native=native, batch_size=3, workers=workers, out=place / "out"
                )
                reconstruct(config)
                found.append(digest(place / "out"))
            found += [batches(place, workers)]
        first = first or found
        assert found == first, f"seed {seed}, {workers} workers"


def batches(place: Path, workers: int) -> str:
    """The batches of two epochs, decoded on the fly."""
    images = OnTheFly(list_images(str(place / "gt")), 32, "crop", workers)
    text = hashlib.sha256()
    for epoch in range(2):
        order, flip = epoch_order(len(images), 5, epoch), flips(len(images), 5, epoch)
        for batch in iterate(images, order, 4, "cpu", orientations=flip):
            text.update(batch.numpy().tobytes())
    return text.hexdigest()


def test_neither_workers_nor_timing_nor_the_order_of_a_listing_change_anything(mixed):
    check_workers_and_timing(mixed, 4)


@pytest.mark.soak
def test_neither_workers_nor_timing_change_anything_many_times(mixed, capsys):
    began = time.monotonic()
    check_workers_and_timing(mixed, 150)
    with capsys.disabled():
        print(f"\n150 times eval, reconstruct (2 ways) and batches on the fly alike, {time.monotonic() - began:.0f} s")


ENVIRONMENTS = [
    {},
    {"PYTHONHASHSEED": "7", "TZ": "Asia/Kathmandu", "LC_ALL": "C", "COLUMNS": "20"},
    {"PYTHONHASHSEED": "0", "TZ": "America/St_Johns", "LC_ALL": "C.UTF-8"},
    {"PYTHONHASHSEED": "99", "PYTHONUTF8": "0", "LANG": "C", "PYTHONOPTIMIZE": "1", "NO_COLOR": "1"},
]


def check_processes(place: Path, count: int, threads: int = 1) -> None:
    """Whole commands, trained from nothing, in surroundings that say nothing of the results."""
    commands = [
        ["train", "vae", *TRAIN, "--epochs", "2", "--flip", "--out", "run", "--cache", "off"],
        ["reconstruct", "--model", "run", "--data", "gt", "--out", "reconstructions"],
        ["sample", "--model", "run", "--n", "5", "--out", "samples"],
        ["grid", "--model", "run", "--data", "gt", "--n", "4", "--out", "grids/grid.png"],
        ["eval", "--gt", "gt", "--pred", "pred", "--on-mismatch", "resize", "--per-image", "numbers/each.csv"],
    ]
    for index in range(count):
        environment = ENVIRONMENTS[index % len(ENVIRONMENTS)]
        here = place / f"p{index}"
        here.mkdir()
        for name in ("images", "gt", "pred"):
            (here / name).symlink_to(place / name)
        for number, command in enumerate(commands):
            workers = [] if command[0] in ("sample", "grid") else ["--workers", str(1 + (index + number) % 3)]
            process = subprocess.run(
                [sys.executable, "-m", "aecli", *command, *workers, "--quiet"], cwd=here, capture_output=True,
                env=os.environ | environment | {"OMP_NUM_THREADS": str(threads)}, text=True, check=False,
            )  # fmt: skip
            assert process.returncode == 0, process.stderr
        assert_same_run(here / "run", place / "p0/run")
        for name in ("reconstructions", "samples", "grids", "numbers"):
            assert digest(here / name) == digest(place / "p0" / name), f"{name} in {environment}"


@pytest.mark.soak
@pytest.mark.parametrize("threads", [1, 2])
def test_surroundings_change_nothing_many_times(mixed, threads, capsys):
    """With as many threads: training adds up gradients in each, and another number of them in another order."""
    check_processes(mixed, 12, threads=threads)
    with capsys.disabled():
        print(
            f"\n12 times train, reconstruct, sample, grid and eval in 4 surroundings, {threads} threads: the same bits"
        )


# What may differ in its last bits


def check_batch_sizes(place: Path, nets: dict[str, Path | None], sizes: tuple[int, ...], threads: tuple[int, ...]):
    """The largest differences of a metric's numbers between batch sizes and numbers of threads, by network."""
    largest: dict[str, list[float]] = {}
    before = torch.get_num_threads()
    try:
        for (net, weights), window in product(nets.items(), ("gaussian", "uniform")):
            options = {"lpips_net": net, "lpips_weights": weights, "ssim_window": window}
            found = []
            for batch_size, count in product(sizes, threads):
                torch.set_num_threads(count)
                found.append(numbers(place, batch_size=batch_size, workers=1, **options)[1])
            spread = np.max(found, axis=0) - np.min(found, axis=0)
            largest[f"{net}, {window}"] = spread.max(axis=0).tolist()
    finally:
        torch.set_num_threads(before)
    return largest


@pytest.mark.soak
def test_batch_size_and_threads_change_no_number_of_any_network(mixed, capsys):
    nets = {net: random_weights(net) if net != "alex" else None for net in _NETWORKS}
    found = check_batch_sizes(mixed, nets, (1, 2, 3, 7, 16, 64), (1, 2))
    with capsys.disabled():
        print("\nbatch sizes 1, 2, 3, 7, 16, 64 with 1 and 2 threads: largest difference of PSNR, SSIM, LPIPS")
        for what, spread in found.items():
            print(f"  {what}: {spread}")
    for what, spread in found.items():
        assert max(spread) <= 1e-6, what


@pytest.mark.soak
def test_batch_size_and_threads_hardly_change_a_pixel(mixed, capsys):
    shares = {}
    before = torch.get_num_threads()
    for batch_size, threads in product((1, 2, 3, 7, 16), (1, 2)):
        torch.set_num_threads(threads)
        out = mixed / f"{batch_size}-{threads}"
        reconstruct(ReconstructConfig("vae", data="gt", batch_size=batch_size, workers=1, out=out))
        pairs = [(png(out / f"{name}.png").astype(int), png(mixed / f"1-1/{name}.png")) for name in pngs(out)]
        differences = np.concatenate([np.abs(one - other).ravel() for one, other in pairs])
        assert differences.max() <= 1
        shares[batch_size, threads] = float((differences > 0).mean())
    torch.set_num_threads(before)
    with capsys.disabled():
        print(f"\nshare of values that differ by 1 from those of batches of 1: {shares}")
    assert max(shares.values()) < 1e-3
