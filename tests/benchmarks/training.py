"""`aecli train` against a usual PyTorch loop for the same model, in images a second.

    python -m tests.benchmarks.training [--model vae --precision auto] [--json]
    python -m tests.benchmarks.training --device cuda --batch-sizes 64,128,256 --images 4096

The plain way: float32 (on CUDA with TF32 convolutions, PyTorch's default), NCHW, Pillow decodes and resizes in the
Dataset, PyTorch's default DataLoader, `.item()` each step, the squared error and the model's own terms. Its first two
steps are not timed; ours is the rate that `aecli train` reports for the whole run. `--precision fp32` is what machines
without fast bf16 do.
"""

import json
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from aecli.models import registry
from aecli.models.flops import TRAINING_FACTOR, forward_flops
from aecli.runtime.device import place
from tests.benchmarks.common import Row, arguments, interleave, matmul_peak, run, show
from tests.benchmarks.pictures import write_photographs

PLAIN = """
import sys
import time
from pathlib import Path
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from aecli.models import registry
from tests.reference.report import ReportVAE, optimizer_for, vae_loss

source, device, name = sys.argv[1:4]
batch_size, steps, side = map(int, sys.argv[4:])

class Photographs(Dataset):
    def __init__(self):
        self.paths = sorted(Path(source).iterdir())
        self.transform = transforms.Compose([
            transforms.Resize((side, side)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index]).convert("RGB"))

if name == "vae":
    model = ReportVAE().to(device).train()
    optimizer = optimizer_for(model)
else:
    model = registry.build(name, registry.resolve_options(name, {})).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

def loss_of(x):
    if name == "vae":
        return vae_loss(model, x, torch.randn(len(x), 1024, side // 32, side // 32, device=device))
    made = model.predict(x)
    terms = sum(weight * made.terms[term] for term, weight in model.term_weights.items())
    return torch.nn.functional.mse_loss(made.output, x) + terms

done, start = 0, 0.0
while done < steps + 2:
    for x in DataLoader(Photographs(), batch_size=batch_size, shuffle=True, drop_last=True):
        if done == 2:
            start = time.perf_counter()
        x = x.to(device)
        loss = loss_of(x)
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
        model=("vae", "to train"),
        precision=("auto", "--precision of ours"),
        device=("cpu", "cpu or cuda"),
        batch_sizes=("16", "each way takes the best of these"),
        image_size=(256, "side of the images"),
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
            script = [sys.executable, "-c", PLAIN, photographs, options.device, options.model]
            return float(run([*script, batch_size, options.plain_steps, options.image_size]).stdout)

        def ours(batch_size: int, cache_gb: str) -> float:
            command = [
                sys.executable, "-m", "aecli", "train", options.model, "--data", photographs, "--val-fraction", 0,
                "--recipe", "report", "--image-size", options.image_size,
                "--batch-size", batch_size, "--epochs", options.epochs,
                "--device", options.device, "--precision", options.precision, "--compile", options.compile,
                "--out", folder / f"run-{next(runs)}", "--quiet", "--json",
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
    dtype = place(options.device, options.precision, training=True).precision  # what training takes by itself
    model = registry.build_on_meta(options.model, registry.resolve_options(options.model, {}))
    step_flops = TRAINING_FACTOR * forward_flops(model, options.image_size)
    peak = matmul_peak(dtype, options.device, 4096 if options.device == "cpu" else 8192)
    limit_is = f"{step_flops / 1e9:.3g} GFLOP an image at the {dtype} matmul peak of {peak / 1e12:.3g} TFLOP/s"
    rows = [
        Row(what, "images/s", rate, plain_rate, rate / plain_rate, peak / step_flops, limit_is)
        for what, rate in (("from the pack", our_rate), ("decoded on the fly", unpacked_rate))
    ]
    best = max(paces, key=lambda each: (each[1] != "0", each[0]))
    notes = {
        "batch size of ours": best[2],
        "time waiting for data": f"{best[3]['data_wait_fraction']:.2%}",
        "peak memory": f"{best[3]['peak_memory'] / 1e9:.2f} GB",
        "1000 epochs on 2,000 images": f"{2e6 / our_rate / 3600:.2f} h without validation",
    }
    title = f"aecli train {options.model}, {options.image_size}², {dtype}, on {options.device}"
    show(title, rows, options.json, **notes)


if __name__ == "__main__":
    main()
