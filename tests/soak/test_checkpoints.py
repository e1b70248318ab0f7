"""Hostile checkpoints, run folders and weights: each is loaded correctly or refused in a line, in bounded memory.

    pytest -m soak tests/soak/test_checkpoints.py -s

A failure names its kind of file and number: `try_one(kind, number, genuine, folder)` makes that file again.
"""

import functools
import json
import multiprocessing
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from aecli.configs import TrainConfig
from aecli.data.inventory import Listing
from aecli.errors import AecliError
from aecli.metrics.network_weights import backbone_weights
from aecli.models import registry
from aecli.progress import ignore
from aecli.runs import catalogue, checkpoints
from aecli.runs.data_changes import notices_of, source_changes
from aecli.runs.folder import RunFolder
from aecli.training import loop, run_choice
from aecli.training.state import TrainState
from aecli.training.state_schema import load_state
from tests.soak import hostile
from tests.support.objectives import fresh_state
from tests.support.trained import write_images

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's limits")

OPTIONS = {"width": 1, "latent_dim": 2, "beta": 1e-5}
EMA = 0.9
MEMORY = 256 * 2**20  # bytes that a worker may use beyond what it began with; its files are of some 100 kB
SECONDS = 20  # for a file, on a machine with other work


def make_genuine(folder: Path) -> None:
    """A trained run of the smallest model, its weights bare and pickled, and a module that no file may import."""
    config = TrainConfig(
        "vae", str(write_images(folder / "images")), val_fraction=0.3, epochs=2, image_size=64, batch_size=4, lr=1e-3,
        ema=EMA, options=OPTIONS, device="cpu", precision="fp32", compile="off", out=folder / "run",
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aecli.training.observers.previews.write_preview", lambda session: None)
        list(loop.train(config))
    (folder / f"{hostile.MODULE}.py").write_text("from aecli.models.vae import VAE as Model")
    weights = safetensors.torch.load_file(folder / "run" / "model.safetensors")
    safetensors.torch.save_file(weights, folder / "bare.safetensors")
    features = {f"features.{name}": value for name, value in weights.items() if value.is_floating_point()}
    torch.save(features, folder / "weights.pth")
    torch.save(features, folder / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(features, folder / "weights.safetensors")


# What is done with each kind of file: nothing for a file that is refused, an AssertionError for one taken wrongly.


def load_model(path: Path, folder: Path) -> None:
    model, _ = checkpoints.load_model(path)
    theirs = safetensors.torch.load_file(path)  # the format's own reader takes what ours takes, to the same numbers
    state = model.state_dict()
    assert state.keys() == theirs.keys()
    assert all(torch.equal(state[key], value.to(state[key].dtype)) for key, value in theirs.items())
    extreme = any(value.abs().max() > 1e18 for value in state.values() if value.is_floating_point())
    with torch.no_grad():
        output = model(torch.zeros(1, 3, 64, 64))
    assert output.shape == (1, 3, 64, 64) and (extreme or bool(output.isfinite().all()))


@functools.cache
def state_of_a_vae() -> TrainState:
    model = registry.build("vae", registry.resolve_options("vae", OPTIONS))
    return fresh_state(model, lr=1e-3, ema=EMA)


def resume(path: Path, folder: Path) -> None:
    state = state_of_a_vae()
    before = {key: value.clone() for key, value in state.tensors().items()}, json.dumps(state.document())
    tensors, document = load_state(path)
    try:
        state.restore(tensors, document)
    except ValueError as error:
        assert hostile.printable_lines(str(error))
        after = state.tensors()
        assert before[0].keys() == after.keys() and all(torch.equal(after[key], before[0][key]) for key in after)
        assert before[1] == json.dumps(state.document())
        raise AecliError(str(error)) from error
    json.dumps(state.document(), allow_nan=False)
    assert len(state.rows) == state.counters.epoch
    assert all(bool(value.isfinite().all()) for value in state.tensors().values())
    RunFolder(folder).write_metrics(state.rows)


def read_run(path: Path, folder: Path) -> None:
    run = RunFolder(folder)
    config = run.read_config()
    facts = catalogue.describe_run(run)
    json.dumps({**vars(facts), "kept": facts.kept and facts.kept.to_json()}, allow_nan=False)
    f"{facts.best_epoch or 0:.0f} {facts.val_psnr or 0:.2f} {facts.image_size:d} {facts.epochs:d}"
    assert facts.model.isprintable() and (facts.error is None or hostile.printable_lines(facts.error))
    run_choice.first_difference(config, {"data": "x", "options": {"width": 4}})
    changes = source_changes(run, config, {"data": "/x"}, {"data": Listing("x", [], {"a.png": "3"})})
    assert hostile.printable_lines("\n".join(notices_of(changes)))


def read_weights(path: Path, folder: Path) -> None:
    weights = backbone_weights("vgg", path, ignore)
    assert all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in weights.tensors.values())
    assert sum(value.nbytes for value in weights.tensors.values()) <= 2 * path.stat().st_size


KINDS = {  # the genuine file, how it is changed, where it is put, what is done with it
    "model": ("run/model.safetensors", hostile.changed_file, "model.safetensors", load_model),
    "bare": ("bare.safetensors", hostile.changed_header, "model.safetensors", load_model),
    "last": ("run/last.safetensors", hostile.changed_file, "last.safetensors", resume),
    "config": ("run/config.json", lambda content, dice: hostile.changed_json(content.decode(), dice).encode(
        "utf-8", "surrogatepass"), "config.json", read_run),
    "damaged config": ("run/config.json", hostile.changed_bytes, "config.json", read_run),
    "model of a run": ("run/model.safetensors", hostile.changed_file, "model.safetensors", read_run),
    "last of a run": ("run/last.safetensors", hostile.changed_file, "last.safetensors", read_run),
    "weights": ("weights.safetensors", hostile.changed_header, "weights.safetensors", read_weights),
    "pickle": ("weights.pth", hostile.changed_bytes, "weights.pth", read_weights),
    "old pickle": ("old.pth", hostile.changed_bytes, "weights.pth", read_weights),
}  # fmt: skip
SHARES = {"model": 8, "bare": 2, "last": 8, "config": 4, "damaged config": 1, "model of a run": 2, "last of a run": 1,
          "weights": 2, "pickle": 1, "old pickle": 1}  # fmt: skip
_TURNS = [kind for kind, share in SHARES.items() for _ in range(share)]


def try_one(kind: str, number: int, genuine: Path, folder: Path) -> bool:
    """Make file `number` of a kind in `folder` and use it; return whether it was taken. Whatever is wrong is raised."""
    source, change, name, use = KINDS[kind]
    dice = random.Random(f"{kind} {number}")
    for file in ("config.json", "model.safetensors", "last.safetensors"):
        shutil.copy(genuine / "run" / file, folder / file)
    path = folder / name
    path.write_bytes(change((genuine / source).read_bytes(), dice))
    try:
        use(path, folder)
    except AecliError as error:
        assert hostile.printable_lines(str(error)), repr(str(error))
        return False
    finally:
        assert hostile.MODULE not in sys.modules, "the file's word led to an import"
    return True


def work(numbers: range, genuine: Path, folder: Path, memory: int | None = None) -> None:
    """Try files in this process, in so much memory beyond what it has; how each went is a line of `report.txt`."""
    sys.path.append(str(genuine))  # where that module could be imported from
    state_of_a_vae()
    for kind in KINDS:  # imports, pools and first uses belong to what it has
        try_one(kind, 0, genuine, folder)
    if memory is not None:
        torch.set_num_threads(1)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    began_at = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with open(folder / "report.txt", "w", buffering=1) as report:
        for number in numbers:
            kind = _TURNS[number % len(_TURNS)]
            report.write(f"{kind}:{number}:")
            signal.alarm(SECONDS)  # ends the process, in whatever code it hangs
            began = time.perf_counter()
            try:
                outcome = "taken" if try_one(kind, number, genuine, folder) else "refused"
            except (Exception, SystemExit) as error:  # whatever it is, it is a finding
                outcome = repr(f"{type(error).__name__}: {str(error)[:300]}")
            seconds = time.perf_counter() - began
            signal.alarm(0)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began_at
            report.write(f"{seconds:.3f}:{grown}:{outcome}\n")


def outcomes(report: Path) -> list[list[str]]:
    """Kind, number, seconds, kilobytes grown by and outcome of each file; what ended its process has two."""
    return [line.split(":", 4) for line in report.read_text().splitlines()]


@pytest.fixture(scope="module")
def genuine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("genuine")
    make_genuine(folder)
    return folder


def test_what_is_not_changed_is_taken(genuine, tmp_path):
    for source, _, name, use in KINDS.values():
        for file in ("config.json", "model.safetensors", "last.safetensors"):
            shutil.copy(genuine / "run" / file, tmp_path / file)
        shutil.copy(genuine / source, tmp_path / name)
        use(tmp_path / name, tmp_path)


@pytest.mark.slow
def test_some_hundred_hostile_files_are_loaded_right_or_refused_in_a_line(genuine, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    work(range(232), genuine, tmp_path)
    found = outcomes(tmp_path / "report.txt")
    assert [each for each in found if each[4] not in ("taken", "refused")] == []
    assert len(found) == 232 and 10 < sum(each[4] == "taken" for each in found) < 120


@pytest.mark.soak
def test_forty_thousand_hostile_files_are_loaded_right_or_refused_in_a_line(genuine, tmp_path):
    """In processes of their own: what can't be caught (a signal, no end) is a finding too."""
    count, at_once, each_process = 40_000, 2, 500
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.soak.test_checkpoints"])
    waiting = [range(first, min(first + each_process, count)) for first in range(0, count, each_process)]
    running: list[tuple[range, Path, multiprocessing.process.BaseProcess]] = []
    found: list[list[str]] = []
    while waiting or running:
        while waiting and len(running) < at_once:
            numbers = waiting.pop(0)
            folder = tmp_path / str(numbers.start)
            folder.mkdir()
            process = context.Process(target=work, args=(numbers, genuine, folder, MEMORY))
            process.start()
            running.append((numbers, folder, process))
        numbers, folder, process = running.pop(0)
        process.join()
        found += (done := outcomes(folder / "report.txt"))
        if process.exitcode:
            done[-1][2:] = ["0", "0", f"ended its process with {process.exitcode}"]
            waiting.append(range(numbers.start + len(done), numbers.stop))
    wrong = [each for each in found if each[4] not in ("taken", "refused")]
    print()
    for kind in KINDS:
        of_kind = [each for each in found if each[0] == kind]
        print(f"{kind}: {len(of_kind)} files, {sum(each[4] == 'taken' for each in of_kind)} taken")
    print(f"{len(found)} files; slowest {max(float(each[2]) for each in found):.2f} s, most memory "
          f"{max(int(each[3]) for each in found) / 1024:.0f} MB more, {len(wrong)} wrong")  # fmt: skip
    assert wrong == []
    assert len(found) == count
