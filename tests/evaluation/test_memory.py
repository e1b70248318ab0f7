"""How much memory a pair of large images takes: a scan is measured by strips, and not copied."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

SIDE = 5000
MEASURE = """
import re, sys
from aecli.configs import EvalConfig
from aecli.evaluation.paired import evaluate
evaluate(EvalConfig(sys.argv[1] + "/gt", (sys.argv[1] + "/pred",), metrics=(sys.argv[2],), workers=1, device="cpu"))
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


def peak_bytes(folder, metric):
    found = subprocess.run([sys.executable, "-c", MEASURE, folder, metric], capture_output=True, text=True, check=True)
    return int(found.stdout) * 1024


def write_pairs(folder, sides):
    """Write a picture of each side, as `SIDE/gt/a.png`, and nearly the same as `SIDE/pred/a.png`."""
    ramp = (np.arange(max(sides)) // 30).astype(np.uint8)
    for side in sides:
        for name in ("gt", "pred"):
            pixels = np.zeros((side, side, 3), dtype=np.uint8)
            pixels[..., 0], pixels[..., 1] = ramp[:side], ramp[:side, None]
            pixels[::7, ::5] += name == "pred"
            (folder / f"{side}/{name}").mkdir(parents=True)
            Image.fromarray(pixels).save(folder / f"{side}/{name}/a.png", compress_level=1)


@pytest.mark.parametrize(
    "metrics",
    [pytest.param(["psnr", "ssim"], marks=pytest.mark.slow), pytest.param(["psnr-y"], marks=pytest.mark.soak)],
    ids=",".join,
)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_pair_takes_at_most_12_bytes_a_pixel(tmp_path, metrics):
    write_pairs(tmp_path, (64, SIDE))
    small, large = (str(tmp_path / str(side)) for side in (64, SIDE))
    before = peak_bytes(small, "psnr")
    for metric in metrics:
        strips = 40e6 if metric == "ssim" else 0  # buffers of tiles, as wide as the image
        assert peak_bytes(large, metric) - before < 12 * SIDE**2 + strips, metric


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_lpips_keeps_one_layer_at_a_time(tmp_path):
    side = 2048
    write_pairs(tmp_path, (64, side))
    before, after = (peak_bytes(str(tmp_path / str(each)), "lpips") for each in (64, side))
    # Bytes: 96, or 127 with one thread; with all features of both images 172 and 147.
    assert after - before < 137 * side**2
