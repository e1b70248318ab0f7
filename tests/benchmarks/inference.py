"""`aecli reconstruct` against a usual PyTorch loop: whole processes including start-up.

    python -m tests.benchmarks.inference [--images 500] [--repeats 3] [--json]

The plain way is float32, one image at a time: Pillow decodes and resizes, Pillow saves a PNG.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from aecli.models import registry
from aecli.runs import checkpoints
from aecli.runtime.device import multiplies_bf16_fast
from tests.benchmarks.common import Row, arguments, interleave, matmul_peak, run, show
from tests.benchmarks.pictures import write_photographs

FORWARD_FLOPS = 26.4e9  # of the report's VAE at 256²
PLAIN = """
import sys
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from tests.reference.report import ReportVAE

weights, source, out, device = sys.argv[1:]
model = ReportVAE()
model.load_state_dict(load_file(weights))
model.eval().to(device)
Path(out).mkdir()
with torch.no_grad():
    for path in sorted(Path(source).iterdir()):
        image = Image.open(path).convert("RGB").resize((256, 256), Image.BILINEAR)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div(127.5).sub(1)[None].to(device)
        y = ((model(x)[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
        Image.fromarray(y.permute(1, 2, 0).numpy()).save(Path(out) / f"{path.stem}.png")
"""


def main() -> None:
    """Measure and print."""
    options = arguments(
        __doc__ or "", images=(500, "images to reconstruct"), repeats=(3, "turns"), device=("cpu", "cpu or cuda")
    )
    with TemporaryDirectory() as name:
        folder = Path(name)
        photographs = write_photographs(folder / "photographs", options.images, 320, 280, "jpg")
        weights = _write_model(folder / "vae.safetensors")
        numbers = iter(range(1000))

        def ours(*precision: str) -> Callable[[], float]:
            command = [sys.executable, "-m", "aecli", "reconstruct", "--model", weights, "--data", photographs,
                       "--device", options.device]  # fmt: skip
            return lambda: run([*command, "--out", folder / f"out-{next(numbers)}", *precision]).seconds

        def plain() -> float:
            return run(
                [sys.executable, "-c", PLAIN, weights, photographs, folder / f"out-{next(numbers)}", options.device]
            ).seconds

        beginning = f"import torch; torch.zeros(1, device={options.device!r})"  # CUDA takes seconds to begin
        importing = run([sys.executable, "-c", beginning]).seconds
        kinds = {"fp32": "fp32 (the default)"}
        if multiplies_bf16_fast(torch.device(options.device)):  # elsewhere it takes minutes, and nobody asks for it
            kinds["bf16"] = "bf16"
        plain_s, *ours_s = map(
            median, interleave([plain, *(ours("--precision", dtype) for dtype in kinds)], options.repeats)
        )
    rows = []
    for (dtype, what), seconds in zip(kinds.items(), ours_s, strict=True):
        least = options.images * FORWARD_FLOPS / matmul_peak(dtype, options.device) + importing
        limit_is = f"starting torch, then {FORWARD_FLOPS / 1e9:.3g} GFLOP an image at the {dtype} matmul peak"
        rows.append(
            Row(f"reconstruct {options.images}, {what}", "s", seconds, plain_s, plain_s / seconds, least, limit_is)
        )
    show(f"aecli reconstruct, the report's VAE at 256², on {options.device}", rows, options.json)


def _write_model(path: Path) -> Path:
    torch.manual_seed(0)
    model_options = registry.resolve_options("vae", {})
    model = registry.build("vae", model_options)
    header = {"model": "vae", "options": asdict(model_options), "image_size": 256, "fit": "squash", "epoch": 1}
    checkpoints.save(path, model.state_dict(), header)
    return path


if __name__ == "__main__":
    main()
