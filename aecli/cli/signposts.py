"""What other tools' users type, and what it is called here; and the command to type after one that is done."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING

from aecli.configs.checks import RANDOM_CROP
from aecli.errors import ConfigError, ModelError

if TYPE_CHECKING:  # imported where they are needed, for the sake of --help
    from aecli.configs import ReconstructConfig, TrainConfig
    from aecli.runs.folder import RunFolder

_GOES_ON = "the command that began a run goes on with it, typed again as it was"
# What stands for options of other tools, with `_` written as `-`: the first one that a command has is named, and its
# value repeated. What holds a blank is said as it is, by any command unless it begins with an option.
_OPTIONS = {
    "n-epochs num-epochs nepochs epoch max-epochs e": ["--epochs"],
    "max-steps num-steps iterations iters max-iter": ["--steps"],
    "learning-rate lr-rate rate": ["--lr"],
    "bs batch batchsize train-batch-size mini-batch b": ["--batch-size"],
    "imgsize img-size imgsz size resolution image-resolution": ["--image-size"],
    "num-workers n-workers nworkers jobs threads j": ["--workers"],
    "output output-dir output-path out-dir outdir save-dir save-path save results-dir name exp-name run-name o": [
        "--out",
    ],
    "project runs-dir log-dir logdir checkpoint-dir default-root-dir": ["--runs"],
    "dataset data-dir data-path data-root datadir dataroot root train-dir train-data input input-dir images image-dir "
    "source path folder d i": ["--data", "--gt"],
    "val-dir val-path val valid validation-data valid-data test-data": ["--val-data"],
    "val-split val-ratio validation-split test-size": ["--val-fraction"],
    "ckpt ckpt-path checkpoint checkpoint-path weights pretrained model-path load run model-name arch m": [
        "--init", "--model", "--pred",
    ],
    "z-dim zdim latent latent-size latent-channels nz": ["--latent-dim"],
    "kl-weight kld-weight kl kl-coef": ["--beta"],
    "augment augmentation hflip horizontal-flip": ["--flip", "--turns", "--resized-crops"],
    "rotate rotation rot90 vflip vertical-flip": ["--turns"],
    "random-resized-crop random-scale scale-jitter": ["--resized-crops"],
    "ema-decay": ["--ema"],
    "early-stopping early-stop": ["--patience"],
    "accumulate-grad-batches gradient-accumulation-steps accum accumulation": ["--grad-accum"],
    "save-every save-freq save-interval checkpoint-interval": ["--checkpoint-every"],
    "force f overwrite-output-dir exist-ok": ["--overwrite", "--restart"],
    "num-samples n-samples num-images nimages num count n": ["--n"],
    "random-seed manual-seed s": ["--seed"],
    "temp t": ["--temperature"],
    "cfg config-file yaml c": ["--config"],
    "reference ref real target ground-truth truth original": ["--gt"],
    "prediction predictions fake generated reconstructions": ["--pred"],
    "metric": ["--metrics"],
    "resume continue auto-resume restore resume-from resume-training r": [_GOES_ON],
    "gpu gpus cuda use-gpu use-cuda gpu-id gpu-ids": [
        "--device cuda or cuda:N; auto, the default, takes a GPU that is there",
    ],
    "cpu no-cuda no-gpu": ["--device cpu"],
    "mps": ["--device mps"],
    "amp fp16 half use-amp mixed-precision": ["--precision fp16, or bf16"],
    "bf16": ["--precision bf16"],
    "fp32": ["--precision fp32"],
    "tensorboard tb wandb logger": ["--log tensorboard"],
    "verbose v debug": ["progress is shown unless --quiet is given; the version: aecli --version"],
    "version": ["aecli --version"],
    "nproc-per-node nproc devices num-gpus distributed ddp": ["torchrun --nproc-per-node N -m aecli …"],
}  # fmt: skip
_COMMANDS = {
    "test evaluate validate val metrics": "aecli eval --gt SOURCE --pred SOURCE",
    "infer inference predict apply run": "aecli reconstruct --model MODEL --data SOURCE",
    "generate gen draw": "aecli sample --model MODEL",
    "fit learn": "aecli train MODEL",
    "finetune fine-tune": "aecli train MODEL --init RUN",
    "list ls runs show status info": "aecli models",
    "plot visualize visualise figure": "aecli grid",
    "morph": "aecli interpolate A B --model MODEL",
    "convert onnx save push upload publish": "aecli export --model MODEL --out DIR --format onnx",
    "version": "aecli --version",
    "help": "aecli --help",
}
_RESUME = ("resume", "continue", "restart")


def check_options(command: str, args: Sequence[str], known: Collection[str]) -> None:
    """Raise ConfigError at the first of `args` that is no option of `command` but another tool's name for one.

    `known` are the command's own options.
    """
    for place, arg in enumerate(args):
        if arg == "--":
            return
        flag, _, value = arg.partition("=")
        if not re.fullmatch(r"-[A-Za-z]|--[A-Za-z][\w-]*", flag) or flag in known:
            continue
        name = flag.lstrip("-").replace("_", "-").lower()
        meant = _meaning(name, known)
        if meant is None:
            continue
        if meant in known:
            follows = args[place + 1] if place + 1 < len(args) else ""
            value = value or ("" if follows.startswith("-") else follows)
            meant = join([meant, value]) if value else meant
        raise ConfigError(f"{flag}: {command} has no such option\nhint: {meant}")


def _meaning(name: str, known: Collection[str]) -> str | None:
    if f"--{name}" in known:  # spelled with _ or capitals
        return f"--{name}"
    for names, meanings in _OPTIONS.items():
        if name in names.split():
            return next((each for each in meanings if each[0] != "-" or each.split()[0] in known), None)
    return None


def check_command(name: str, args: Sequence[str]) -> None:
    """Raise ConfigError where `name`, which is no command, is another tool's name for one, or a model."""
    from aecli.configs.train import RunConfig
    from aecli.models import registry
    from aecli.runs.folder import find_run

    meant = next((text for names, text in _COMMANDS.items() if name in names.split()), None)
    if name in _RESUME:
        run = find_run(args[0], RunConfig.runs) if args else None
        meant = going_on(run) if run else _GOES_ON
    elif registry.is_model_name(name):
        meant = join(["aecli", "train", name, *args])
    if meant is not None:
        raise ConfigError(f"aecli {name}: no such command\nhint: {meant}")


def going_on(run: "RunFolder") -> str:
    """Return a command that goes on with `run`, or says that it is finished."""
    model, path = run.read_config()["model"]["name"], str(run.path)
    return join(["aecli", "train", model, "--config", path, "--out", path])


def refuse_run(model: str, runs: Path) -> None:
    """Raise ModelError where the MODEL to train is a run: that is gone on with, not trained again."""
    from aecli.models import registry
    from aecli.runs.folder import find_run

    if not registry.is_model_name(model) and (run := find_run(model, runs)):
        name = run.read_config()["model"]["name"]
        raise ModelError(
            f"MODEL {model}: a run of {name}, not a model to train\n"
            f"hint: to go on with it: {going_on(run)}; to begin from its weights, --init {model}"
        )


def after_training(config: "TrainConfig", run: "RunFolder", is_validated: bool) -> str:
    """Return the command to type after a training run: its pictures, or samples of a prior."""
    from aecli.configs.train import RunConfig

    model = config.model
    runs = [] if config.run.runs == RunConfig.runs else ["--runs", str(config.run.runs)]
    if model.autoencoder is not None:
        from aecli.sampling.prior_choice import prior_kind

        return join(["aecli", "sample", "--model", model.autoencoder, "--prior", prior_kind(run), *runs])
    data = [] if is_validated else ["--data", config.data.source]
    if run.path.parent != config.run.runs or ":" in model.name:  # not among those that grid finds by itself
        named = f"{model.name}={run.path}" if ":" in model.name else str(run.path)
        return join(["aecli", "grid", "--n", "10", "--model", named, *data])
    return join(["aecli", "grid", "--n", "10", *runs, *data])


def after_reconstructing(config: "ReconstructConfig", source: str, out: Path, image_size: int, fit: str) -> str:
    """Return the command that measures reconstructions of images of `source`, which were brought to `image_size`."""
    size = [] if config.native or fit == RANDOM_CROP else ["--image-size", str(image_size), "--fit", fit]
    is_part = config.split != "all" if config.data is None else config.split in ("train", "val")
    skip = ["--on-mismatch", "skip"] if is_part else []
    return join(["aecli", "eval", "--gt", source, "--pred", str(out), *size, *skip])
