"""Whether aecli has grown slow: the same short benchmarks of two revisions, in turns.

    python -m tests.benchmarks.compare REV [OTHER] [--turns 5] [--only NAMES] [--limit 1.3] [--json]

REV and OTHER are git revisions, or folders that hold a package `aecli`; OTHER is the working tree by default. Both run
in this environment, on copies of their package. A ratio is OTHER's seconds over REV's in one turn: its median and its
range over the turns are printed. The exit status is 1 if a benchmark's whole range lies above the limit, or it fails in
OTHER; one that fails in REV, which may lack what it measures, is left out.
"""

import argparse
import compileall
import filecmp
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from tests.benchmarks.common import aligned, machine, run
from tests.benchmarks.pictures import write_photographs

ROOT = Path(__file__).parents[2]
PICTURES, SIDE = 8, 128
TRAIN = ("--data", "pictures", "--image-size", "64", "--batch-size", "8", "--out", "run", "--device", "cpu")
EVAL = ("eval", "--gt", "pictures", "--pred", "pictures", "--device", "cpu", "--json")

# A whole process each.
PROCESSES = {
    "aecli --help": ("--help",),
    "eval, a process": (*EVAL, "--metrics", "psnr"),
}
# In a process that has imported everything: the seconds of the command, or those that a dry run says a step takes.
CALLS = {"eval, three metrics": EVAL}
STEPS = {
    "a step of vae": ("train", "vae", *TRAIN, "--width", "8", "--dry-run", "--json"),
    "a step of resnet": ("train", "resnet", *TRAIN, "--width", "16", "--dry-run", "--json"),
}
NAMES = (*PROCESSES, *CALLS, *STEPS)
WORKER = """
import json
import sys
import time
from typer.testing import CliRunner
from aecli.cli.app import app

for line in sys.stdin:
    words = json.loads(line)
    start = time.perf_counter()
    result = CliRunner().invoke(app, words, prog_name="aecli")
    seconds = time.perf_counter() - start
    failure = None if result.exit_code == 0 else f"status {result.exit_code}: {result.output or result.exception!r}"
    if failure is None and "--dry-run" in words:  # which warms up, and times some more steps
        seconds = json.loads(result.stdout)["seconds_per_step"]
    print(json.dumps([seconds, failure]), flush=True)
"""


@dataclass(frozen=True)
class Comparison:
    """A benchmark's seconds in each turn, of REV (`base`) and OTHER; or which of them (`failed`) fails, and how."""

    name: str
    base: Sequence[float] = ()
    other: Sequence[float] = ()
    failed: str = ""
    how: str = ""

    @property
    def ratios(self) -> list[float]:
        """OTHER's seconds over REV's, turn by turn, sorted."""
        return sorted(other / base for base, other in zip(self.base, self.other, strict=True))

    def is_slower(self, limit: float) -> bool:
        """Whether every turn is beyond the limit."""
        return bool(self.ratios) and self.ratios[0] > limit


class Tree:
    """A copy of a package `aecli`, and a process in which its commands are called."""

    def __init__(self, folder: Path, work: Path) -> None:
        # Threads that wait for each other measure what else the machine does.
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder),
                            "XDG_CACHE_HOME": str(work / "cache")}  # fmt: skip
        self.work = work
        self._worker: subprocess.Popen[str] | None = None

    def process(self, words: Sequence[str]) -> float:
        """Return the seconds of `aecli` with these words; raises RuntimeError where it fails."""
        return run([sys.executable, "-m", "aecli", *words], self.work, self.environment).seconds

    def call(self, words: Sequence[str]) -> float:
        """Return the seconds that a call takes or tells; raises RuntimeError where it fails."""
        if self._worker is None:
            self._worker = subprocess.Popen(
                [sys.executable, "-c", WORKER],
                cwd=self.work,
                env=self.environment,
                text=True,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        assert self._worker.stdin and self._worker.stdout
        self._worker.stdin.write(json.dumps(words) + "\n")
        self._worker.stdin.flush()
        answer = self._worker.stdout.readline()
        if not answer:
            raise RuntimeError(f"status {self._worker.wait()}")
        seconds, failure = json.loads(answer)
        if failure is not None:
            raise RuntimeError(failure)
        return float(seconds)

    def close(self) -> None:
        """End its process."""
        if self._worker is not None:
            with self._worker as worker:
                worker.kill()


def main(words: Sequence[str] | None = None) -> int:
    """Compare and print; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rev", help="a git revision or a folder")
    parser.add_argument("other", nargs="?", default=str(ROOT), help="another (the working tree)")
    parser.add_argument("--turns", type=int, default=5, help="of each benchmark (5)")
    parser.add_argument("--only", default=None, help=f"some of: {', '.join(NAMES)}")
    parser.add_argument("--limit", type=float, default=1.3, help="beyond which a ratio fails (1.3)")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    options = parser.parse_args(words)
    names = NAMES if options.only is None else [name for name in NAMES if name in options.only]
    if not names:
        parser.error(f"--only {options.only}: no such benchmark")
    with TemporaryDirectory() as name:
        folders = Path(name, "base"), Path(name, "other")
        for revision, folder in zip((options.rev, options.other), folders, strict=True):
            if failure := unpack(revision, folder):
                parser.error(failure)
        if is_same(*folders):
            print(f"aecli is the same in {options.rev} and {options.other}")
            return 0
        write_photographs(Path(name, "pictures"), PICTURES, SIDE, SIDE)
        with ExitStack() as stack:
            for folder in folders:
                compileall.compile_dir(folder, quiet=1)  # start-up is that of an installed package
            trees = [Tree(folder, Path(name)) for folder in folders]
            for tree in trees:
                stack.callback(tree.close)
            found = [compare(each, trees, options.turns) for each in names]
    show(found, options)
    return int(any(each.is_slower(options.limit) or each.failed == "OTHER" for each in found))


def unpack(revision: str, folder: Path) -> str:
    """Copy the package of a revision or folder into `folder`; return why that can't be done, or nothing."""
    if Path(revision, "aecli").is_dir():
        shutil.copytree(Path(revision, "aecli"), folder / "aecli", ignore=shutil.ignore_patterns("__pycache__"))
        return ""
    made = subprocess.run(["git", "archive", revision, "aecli"], cwd=ROOT, capture_output=True)
    if made.returncode:
        return f"{revision}: neither a git revision nor a folder with aecli: {made.stderr.decode().strip()}"
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(folder)  # git's own; Python before 3.11.4 has no filters
    return ""


def is_same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files."""
    files, others = ({path.relative_to(root) for path in root.rglob("*") if path.is_file()} for root in (one, other))
    _, different, unreadable = filecmp.cmpfiles(one, other, map(str, files), shallow=False)
    return files == others and not different and not unreadable


def compare(name: str, trees: Sequence[Tree], turns: int) -> Comparison:
    """Measure a benchmark of both trees, in turns that begin with one and the other; a call's first is not counted."""
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(-1 if name in CALLS else 0, turns):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            tree = trees[which]
            try:
                seconds = tree.process(PROCESSES[name]) if name in PROCESSES else tree.call({**CALLS, **STEPS}[name])
            except RuntimeError as error:
                return Comparison(name, failed=("REV", "OTHER")[which], how=str(error))
            if turn >= 0:
                found[which].append(seconds)
    return Comparison(name, *found)


def show(found: Sequence[Comparison], options: argparse.Namespace) -> None:
    """Print a table, or JSON."""
    if options.json:
        print(json.dumps({"limit": options.limit, "benchmarks": [asdict(each) for each in found],
                          "machine": machine()}, indent=2))  # fmt: skip
        return
    print(
        f"REV {options.rev}, OTHER {options.other}: least seconds, and the ratio OTHER / REV of {options.turns} turns"
    )
    cells = [("", "REV", "OTHER", "ratio", "from", "to", "")]
    for each in found:
        if each.ratios:
            ratios = [f"{value:.2f}" for value in (median(each.ratios), each.ratios[0], each.ratios[-1])]
            verdict = f"slower than {options.limit} x" if each.is_slower(options.limit) else ""
            cells.append((each.name, f"{min(each.base):.4f}", f"{min(each.other):.4f}", *ratios, verdict))
    print(aligned(cells, left=(0, 6)))
    for each in found:
        if each.failed:
            print(f"{each.name}: fails in {each.failed}: {each.how}")


if __name__ == "__main__":
    sys.exit(main())
