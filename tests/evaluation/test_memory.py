"""How much memory a pair of large images takes: a scan is measured by strips, and not copied."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

SIDE = 4000
MEASURE = """
import re, sys
from aecli.configs import EvalConfig
from aecli.evaluation.paired import evaluate
for side, metric in (("64", "psnr"), ("64", "ssim"), *((sys.argv[2], name) for name in ("psnr", "psnr-y", "ssim"))):
    folder = f"{sys.argv[1]}/{side}"
    evaluate(EvalConfig(folder + "/gt", (folder + "/pred",), metrics=(metric,), workers=1, device="cpu"))
    print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_pair_takes_at_most_12_bytes_a_pixel(tmp_path):
    """The process's peak after each metric in turn, above that after small images."""
    ramp = (np.arange(SIDE) // 30).astype(np.uint8)
    for side in (64, SIDE):
        for name in ("gt", "pred"):
            pixels = np.zeros((side, side, 3), dtype=np.uint8)
            pixels[..., 0], pixels[..., 1] = ramp[:side], ramp[:side, None]
            pixels[::7, ::5] += name == "pred"
            (tmp_path / f"{side}/{name}").mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / f"{side}/{name}/a.png", compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path, str(SIDE)], capture_output=True, text=True, check=True
    )
    _, before, *peaks = (int(peak) * 1024 for peak in done.stdout.split())
    for metric, peak in zip(("psnr", "psnr-y", "ssim"), peaks, strict=True):
        strips = 40e6 if metric == "ssim" else 0  # buffers of tiles, as wide as the image
        assert peak - before < 12 * SIDE**2 + strips, metric
