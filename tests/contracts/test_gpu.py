"""On a real CUDA device, where there is one: training, resuming and measuring, beside the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.support.trained import NAMES, assert_same_run, fails, ok, ok_json, png, pngs, rows, write_images

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.usefixtures("no_pictures"),
]

SIZE = 64
SMALL = ["--data", "images", "--val-fraction", "0.3", "--image-size", str(SIZE), "--batch-size", "4", "--seed", "1"]
AUTOENCODERS = {
    "ae": ["ae", "--width", "4"],
    "vae": ["vae", "--width", "4"],
    "resnet": ["resnet", "--width", "16", "--recipe", "quick"],
    "resnet-kl": ["resnet", "--width", "16", "--recipe", "quick", "-o", "bottleneck=kl"],
    "resnet-fsq": ["resnet", "--width", "16", "--recipe", "quick", "-o", "bottleneck=fsq"],
    "resnet-vq": ["resnet", "--width", "16", "--recipe", "quick", "-o", "bottleneck=vq"],
    "kl": ["kl", "-o", "block_out_channels=16,16,32", "-o", "norm_num_groups=8", "--recipe", "report"],
    "vq": ["vq", "-o", "block_out_channels=16,16", "-o", "norm_num_groups=8", "--recipe", "report"],
    "sharp": ["resnet", "--width", "16", "--recipe", "sharp"],
    "gan": ["resnet", "--width", "16", "--recipe", "gan", "--adversarial-start", "2", "--adversarial-ramp", "2"],
}
RUNS = [*AUTOENCODERS, "prior"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working folder with `images` and a trained run `base`, whose latents a prior is trained on."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_images(Path("images"), NAMES, 80, 96)
        ok("train", *AUTOENCODERS["resnet-kl"], *SMALL, "--steps", "4", "--quiet", "--out", "base")
    return folder


@pytest.fixture(autouse=True)
def in_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)


def train(kind: str, out: str, epochs: int, *more: str) -> Path:
    if kind == "prior":
        what = ["prior", "--model", "base", "--recipe", "report", "--batch-size", "4", "--width", "32", "--seed", "1"]
    else:
        what = [*AUTOENCODERS[kind], *SMALL]
    ok("train", *what, "--schedule", "constant", "--epochs", str(epochs), "--out", out, "--quiet", *more)
    return Path(out)


@pytest.mark.parametrize("kind", RUNS)
def test_a_continued_run_is_the_run_never_stopped(kind):
    whole = train(kind, f"whole-{kind}", 3, "--device", "cuda", "--deterministic")
    train(kind, f"parts-{kind}", 1, "--device", "cuda", "--deterministic")
    assert_same_run(whole, train(kind, f"parts-{kind}", 3, "--device", "cuda", "--deterministic"))


@pytest.mark.parametrize("kind", [kind for kind in RUNS if kind not in ("kl", "prior")])  # whose noise is another's
def test_first_epoch_in_fp32_is_that_of_the_cpu(kind):
    found = [rows(train(kind, f"{kind}-{device}", 1, "--device", device, "--precision", "fp32", "--compile", "off"))
             for device in ("cpu", "cuda")]  # fmt: skip
    for name, value in found[0][0].items():
        if value not in ("", "nan"):
            assert float(found[1][0][name]) == pytest.approx(float(value), rel=2e-2, abs=2e-3), name


@pytest.mark.parametrize("kind", RUNS)
def test_compiled_in_bf16_it_learns_the_same(kind):
    plain = rows(train(kind, f"plain-{kind}", 2, "--device", "cuda", "--precision", "bf16", "--compile", "off"))
    made = rows(train(kind, f"compiled-{kind}", 2, "--device", "cuda", "--precision", "bf16", "--compile", "on"))
    assert float(made[-1]["train_loss"]) == pytest.approx(float(plain[-1]["train_loss"]), rel=0.05, abs=5e-3)


@pytest.mark.parametrize("kind", ["vae", "resnet-kl", "resnet-vq", "kl"])
def test_used_there_a_model_gives_what_it_gives_on_the_cpu(kind):
    train(kind, f"used-{kind}", 1, "--device", "cuda")
    for device in ("cpu", "cuda"):
        model = ["--model", f"used-{kind}", "--device", device, "--data", "images", "--quiet"]
        ok("reconstruct", *model, "--out", f"r-{kind}-{device}", "--latents", f"l-{kind}-{device}.safetensors")
        ok("sample", *model, "--n", "4", "--seed", "3", "--out", f"s-{kind}-{device}")
    one, other = (load_file(f"l-{kind}-{device}.safetensors")["mean"] for device in ("cpu", "cuda"))
    is_near = torch.isclose(one, other, rtol=1e-3, atol=1e-3 * float(one.abs().max()))
    if kind == "resnet-vq":  # a code that is as near as another may be the other
        assert is_near.float().mean() > 0.9
        return
    assert is_near.all()
    for made in ("r", "s"):
        one, other = (Path(f"{made}-{kind}-{device}") for device in ("cpu", "cuda"))
        assert pngs(one) == pngs(other) != []
        apart = [np.abs(png(one / f"{name}.png").astype(int) - png(other / f"{name}.png")).max() for name in pngs(one)]
        assert max(apart) <= 1, made


def test_metrics_of_pairs_are_those_of_the_cpu():
    ok("reconstruct", "--model", "base", "--data", "images", "--out", "pairs", "--quiet")
    names = "psnr,ssim,lpips"
    found = [ok_json("eval", "--gt", "images", "--pred", "pairs", "--image-size", str(SIZE), "--fit", "squash",
                     "--metrics", names, "--device", device, "--quiet")["results"][0]
             for device in ("cpu", "cuda")]  # fmt: skip
    for name in names.split(","):
        assert found[1][name]["mean"] == pytest.approx(found[0][name]["mean"], rel=1e-4, abs=1e-5), name


def test_metrics_of_sets_are_those_of_the_cpu():
    ok("reconstruct", "--model", "base", "--data", "images", "--out", "drawn", "--quiet")
    sets = ["--gt", "images", "--samples", "drawn", "--features", "alex", "--quiet"]
    found = [ok_json("eval", *sets, "--device", device)["results"][0] for device in ("cpu", "cuda")]
    numbers = {name: value for name, value in found[0].items() if isinstance(value, float)}
    assert numbers
    for name, value in numbers.items():
        assert found[1][name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_a_run_goes_on_where_the_other_device_left_off():
    train("vae", "moved", 1, "--device", "cuda", "--precision", "fp32")
    moved = train("vae", "moved", 2, "--device", "cpu", "--precision", "fp32")
    assert [row["epoch"] for row in rows(moved)] == ["1", "2"]


def test_peak_memory_is_that_of_the_device():
    made = ok_json("train", "vae", "--width", "32", *SMALL, "--epochs", "1", "--device", "cuda", "--out", "peak")
    assert 0 < made["pace"]["peak_memory"] <= torch.cuda.max_memory_reserved()


def test_a_batch_too_large_for_the_device_is_one_line():
    torch.cuda.set_per_process_memory_fraction(0.005)
    try:
        told = fails(1, "train", "vae", *SMALL, "--image-size", "256", "--epochs", "1", "--device", "cuda",
                     "--out", "large", "--quiet")  # fmt: skip
        assert "memory" in told
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
