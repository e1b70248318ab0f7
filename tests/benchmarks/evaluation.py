"""`aecli eval` against a usual script: whole processes including start-up, on generated pairs of 256×256 PNGs."""

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image, ImageFilter
from skimage import data

from aecli.metrics.network_weights import SHIPPED
from tests.benchmarks.common import Row, arguments, interleave, matmul_peak, run, show

SIDE = 256
PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")
# AlexNet's five convolutions at 256×256, counting multiplications and additions.
ALEX_FLOPS = 1.74e9

# A fair baseline: one pair at a time, nothing slowed down. The lpips package gets the weights that ship with aecli
# (torchvision's), so that nothing is downloaded.
PLAIN = """
import sys, warnings
from pathlib import Path
import numpy as np
from PIL import Image
from skimage.metrics import structural_similarity

truths, predictions, weights = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if weights:
    warnings.simplefilter("ignore")
    import lpips, torch
    from safetensors.torch import load_file
    network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = load_file(weights)
    names = network.net.state_dict()
    network.net.load_state_dict({name: state["features." + name.split(".", 1)[1]] for name in names})
    network.eval()

def tensor(image):
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1

rows = []
for path in sorted(truths.iterdir()):
    a = np.array(Image.open(path).convert("RGB"))
    b = np.array(Image.open(predictions / path.name).convert("RGB"))
    row = [10 * np.log10(255**2 / np.mean((a.astype(np.float64) - b) ** 2))]
    row.append(structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1))
    if weights:
        with torch.no_grad():
            row.append(network(tensor(a), tensor(b)).item())
    rows.append(row)
print(*np.mean(rows, axis=0))
"""


def main() -> None:
    """Measure and print."""
    options = arguments(
        main.__doc__ or "",
        pairs=(480, "pairs of images"),
        repeats=(3, "times each way is run"),
        device=("cpu", "cpu or cuda, of ours"),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder, options.pairs)
        script = folder / "plain.py"
        script.write_text(PLAIN, encoding="utf-8")
        rows, notes = measure(folder, script, options.pairs, options.repeats, options.device)
    show(f"eval of {options.pairs} pairs of {SIDE}x{SIDE} PNGs, whole processes", rows, options.json, **notes)


def make_images(folder: Path, count: int) -> None:
    """Write crops of photographs to `gt`, and two degraded copies of each to `one` and `two`."""
    photographs = [getattr(data, name)() for name in PHOTOGRAPHS]
    rng = np.random.default_rng(0)
    for name in ("gt", "one", "two"):
        (folder / name).mkdir()
    for index in range(count):
        photograph = photographs[index % len(photographs)]
        top, left = (rng.integers(0, side - SIDE + 1) for side in photograph.shape[:2])
        image = Image.fromarray(photograph[top : top + SIDE, left : left + SIDE])
        blurred = np.asarray(image.filter(ImageFilter.GaussianBlur(2)), dtype=np.float64)
        noisy = Image.fromarray(np.clip(blurred + rng.normal(0, 3, blurred.shape), 0, 255).astype(np.uint8))
        image.save(folder / "gt" / f"{index:04}.png")
        image.filter(ImageFilter.GaussianBlur(1.5)).save(folder / "one" / f"{index:04}.png")
        noisy.save(folder / "two" / f"{index:04}.png")


def ours(folder: Path, metrics: str, predictions: Sequence[str], device: str) -> list[str | Path]:
    """The command line of `aecli eval`."""
    named = [word for each in predictions for word in ("--pred", f"{each}={folder / each}")]
    words = ["--gt", folder / "gt", *named, "--metrics", metrics, "--device", device, "--quiet", "--json"]
    return [sys.executable, "-m", "aecli", "eval", *words]


def measure(folder: Path, script: Path, pairs: int, repeats: int, device: str) -> tuple[list[Row], dict[str, str]]:
    """Return the rows of the table and the notes below it."""
    plain = [sys.executable, script, folder / "gt", folder / "one"]
    all_metrics, two_metrics = "psnr,ssim,lpips", "psnr,ssim"
    commands = {
        "ours, three metrics": ours(folder, all_metrics, ["one"], device),
        "plain, three metrics": [*plain, SHIPPED["alex"]],
        "ours, PSNR and SSIM": ours(folder, two_metrics, ["one"], device),
        "plain, PSNR and SSIM": [*plain, ""],
        "ours, the other prediction": ours(folder, all_metrics, ["two"], device),
        "ours, two predictions": ours(folder, all_metrics, ["one", "two"], device),
    }
    run(commands["ours, three metrics"])  # fills the system's file cache
    cpu: dict[str, list[float]] = {name: [] for name in commands}
    ways = [partial(_seconds, command, cpu[name]) for name, command in commands.items()]
    figures = dict(zip(commands, interleave(ways, repeats), strict=True))
    times = {name: median(found) for name, found in figures.items()}
    imported = "aecli" if device == "cpu" else "torch"  # which LPIPS does without on a CPU
    starting, starting_networks = (
        median([_seconds([sys.executable, "-c", f"import aecli.evaluation.paired, {module}"]) for _ in range(repeats)])
        for module in ("aecli", imported)
    )
    decoding = _decode_seconds(folder)
    arithmetic = 2 * pairs * ALEX_FLOPS / matmul_peak("fp32", side=2048)
    limit, limit_networks = starting + decoding, starting_networks + decoding + arithmetic
    rows = [
        _against("three metrics", times["ours, three metrics"], times["plain, three metrics"], limit_networks,
                 f"importing {imported} + decoding + AlexNet without Winograd at the fp32 matmul peak"),
        _against("PSNR and SSIM", times["ours, PSNR and SSIM"], times["plain, PSNR and SSIM"], limit,
                 "importing aecli + decoding"),
        _both("two predictions / each alone", times),
    ]  # fmt: skip
    seconds = {name: median(found) for name, found in cpu.items()}
    for what in ("three metrics", "PSNR and SSIM"):
        used, plain_used = seconds[f"ours, {what}"], seconds[f"plain, {what}"]
        rows.append(Row(f"{what}, CPU time", "s", used, plain_used, plain_used / used))
    rows.append(_both("two predictions / each alone, CPU time", seconds))
    notes = {
        "each, min and median of s, median of CPU s": "; ".join(
            f"{name} {min(found):.2f} {times[name]:.2f} {median(cpu[name]):.2f}" for name, found in figures.items()
        ),
        "parts of the limit, s": (
            f"import {starting:.2f}, for LPIPS {starting_networks:.2f}, "
            f"decoding {decoding:.2f}, AlexNet {arithmetic:.2f}"
        ),
        "of the limit": "ours can beat the AlexNet part, as Winograd convolutions take fewer multiplications",
        "ratio of two predictions": "ours / plain, less is better: three images are decoded and measured, not four",
    }
    return rows, notes


def _against(what: str, ours_s: float, plain_s: float, limit_s: float, limit_is: str) -> Row:
    return Row(what, "s", ours_s, plain_s, plain_s / ours_s, limit_s, limit_is)


def _both(what: str, times: Mapping[str, float]) -> Row:
    together, alone = times["ours, two predictions"], times["ours, three metrics"] + times["ours, the other prediction"]
    return Row(what, "s", together, alone, together / alone)


def _seconds(command: Sequence[str | Path], cpu: list[float] | None = None) -> float:
    ran = run(command)
    if cpu is not None:
        cpu.append(ran.cpu_seconds)
    return ran.seconds


def _decode_seconds(folder: Path) -> float:
    """Seconds to decode every image of one comparison once, on all cores."""
    paths = [*(folder / "gt").iterdir(), *(folder / "one").iterdir()]

    def decode(path: Path) -> None:
        np.array(Image.open(path).convert("RGB"))

    start = time.perf_counter()
    with ThreadPoolExecutor() as pool:
        list(pool.map(decode, paths))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
