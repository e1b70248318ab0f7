"""`aecli train vae` against a usual PyTorch loop for the report's VAE, in images a second.

    python -m tests.benchmarks.training [--device cuda --batch-sizes 64,128,256 --images 4096] [--json]

The plain way: float32, NCHW, Pillow decodes and resizes in the Dataset, PyTorch's default DataLoader, `.item()` each
step. Its first two steps are not timed; ours is the rate that `aecli train` reports for the whole run.
"""

import json
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from aecli.runtime.device import multiplies_bf16_fast
from tests.benchmarks.common import Row, arguments, interleave, matmul_peak, run, show
from tests.benchmarks.pictures import write_photographs

STEP_FLOPS = 79.0e9  # an image of the report's VAE at 256², forward and backward
PLAIN = """
import sys
import time
from pathlib import Path
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tests.reference.report import ReportVAE, optimizer_for, vae_loss

source, device, batch_size, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

class Photographs(Dataset):
    def __init__(self):
        self.paths = sorted(Path(source).iterdir())
        self.transform = transforms.Compose([
            transforms.Resize((256, 256)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index]).convert("RGB"))

model = ReportVAE().to(device).train()
optimizer = optimizer_for(model)
done, start = 0, 0.0
while done < steps + 2:
    for x in DataLoader(Photographs(), batch_size=batch_size, shuffle=True, drop_last=True):
        if done == 2:
            start = time.perf_counter()
        x = x.to(device)
        loss = vae_loss(model, x, torch.randn(len(x), 1024, 8, 8, device=device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        done += 1
        if done == steps + 2:
            break
print(steps * batch_size / (time.perf_counter() - start))
"""


def main() -> None:
    """Measure and print."""
    options = arguments(
        __doc__ or "",
        device=("cpu", "cpu or cuda"),
        batch_sizes=("16", "each way takes the best of these"),
        images=(96, "images in the folder"),
        epochs=(3, "epochs of ours"),
        plain_steps=(4, "timed steps of plain"),
        repeats=(2, "turns"),
        compile=("auto", "--compile of ours"),
    )
    sizes = [int(size) for size in options.batch_sizes.split(",")]
    with TemporaryDirectory() as name:
        folder = Path(name)
        photographs = write_photographs(folder / "photographs", options.images, 320, 280, "jpg")
        runs = iter(range(1000))
        paces = []

        def plain(batch_size: int) -> float:
            script = [sys.executable, "-c", PLAIN, photographs, options.device]
            return float(run([*script, batch_size, options.plain_steps]).stdout)

        def ours(batch_size: int, cache_gb: str) -> float:
            command = [
                sys.executable, "-m", "aecli", "train", "vae", "--data", photographs, "--val-fraction", 0,
                "--batch-size", batch_size, "--epochs", options.epochs, "--device", options.device,
                "--compile", options.compile, "--out", folder / f"run-{next(runs)}", "--quiet", "--json",
            ]  # fmt: skip
            environment = {"AECLI_CACHE_GB": cache_gb, "XDG_CACHE_HOME": str(folder / "cache")}
            pace = json.loads(run(command, env=environment).stdout)["pace"]
            paces.append((pace["images_per_s"], cache_gb, batch_size, pace))
            return float(pace["images_per_s"])

        ways = [lambda size=size: plain(size) for size in sizes]
        ways += [lambda size=size: ours(size, "50") for size in sizes]
        ways.append(lambda: ours(sizes[-1], "0"))
        found = [median(rates) for rates in interleave(ways, options.repeats)]
    plain_rate, our_rate, unpacked_rate = max(found[: len(sizes)]), max(found[len(sizes) : -1]), found[-1]
    dtype = "bf16" if multiplies_bf16_fast(torch.device(options.device)) else "fp32"  # what training takes by itself
    peak = matmul_peak(dtype, options.device, 4096 if options.device == "cpu" else 8192)
    limit_is = f"{STEP_FLOPS / 1e9:.3g} GFLOP an image at the {dtype} matmul peak of {peak / 1e12:.3g} TFLOP/s"
    rows = [
        Row(what, "images/s", rate, plain_rate, rate / plain_rate, peak / STEP_FLOPS, limit_is)
        for what, rate in (("from the pack", our_rate), ("decoded on the fly", unpacked_rate))
    ]
    best = max(paces, key=lambda each: (each[1] != "0", each[0]))
    notes = {
        "batch size of ours": best[2],
        "time waiting for data": f"{best[3]['data_wait_fraction']:.2%}",
        "peak memory": f"{best[3]['peak_memory'] / 1e9:.2f} GB",
        "the report's 1000 epochs on 2,000 images": f"{2e6 / our_rate / 3600:.2f} h without validation",
    }
    show(f"aecli train vae, 256², on {options.device}", rows, options.json, **notes)


if __name__ == "__main__":
    main()
