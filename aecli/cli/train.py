"""`aecli train`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from aecli.cli.completion import complete_config, complete_model, complete_registered, complete_source
from aecli.cli.options import (
    DATA,
    MACHINE,
    MODEL,
    RECIPE,
    RUN,
    SOURCE,
    Device,
    Json,
    Precision,
    Quiet,
    Runs,
    Seed,
    Workers,
    choice,
    given,
)
from aecli.configs import COMPILE_MODES, FITS, LOGS, SYNC_MODES, TrainConfig
from aecli.errors import ConfigError
from aecli.models.options import VAEOptions
from aecli.recipes.layering import layer
from aecli.recipes.layering import names as recipe_names

# Parameters of the command that are no option of the run.
_NOT_OF_THE_RUN = ("model", "config", "json", "quiet", "option", "dry_run")


def train(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            help="A registry name (see aecli models) or package.module:Class.",
            metavar="MODEL",
            autocompletion=complete_registered,
        ),
    ],
    autoencoder: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="The autoencoder whose latents a prior learns: a registry name, a run folder or a .safetensors file.",
            rich_help_panel=MODEL,
            metavar="MODEL",
            autocompletion=complete_model,
        ),
    ] = TrainConfig.autoencoder,
    data: Annotated[
        str,
        typer.Option(
            help=f"Images to train on. {SOURCE}", rich_help_panel=DATA, metavar="SOURCE", autocompletion=complete_source
        ),
    ] = TrainConfig.data,
    val_data: Annotated[
        str | None,
        typer.Option(
            help="Images to validate on, in place of a split.",
            rich_help_panel=DATA,
            metavar="SOURCE",
            autocompletion=complete_source,
        ),
    ] = TrainConfig.val_data,
    val_fraction: Annotated[
        float,
        typer.Option(help="The share of images held out for validation, chosen by their names.", rich_help_panel=DATA),
    ] = TrainConfig.val_fraction,
    image_size: Annotated[
        int, typer.Option(help="Side of the square images, in pixels.", rich_help_panel=DATA)
    ] = TrainConfig.image_size,
    fit: Annotated[
        str,
        typer.Option(
            help="Resize both sides at once, or the short side and crop the middle.",
            rich_help_panel=DATA,
            **choice(FITS),
        ),
    ] = TrainConfig.fit,
    flip: Annotated[
        bool, typer.Option("--flip", help="Mirror images at random.", rich_help_panel=DATA)
    ] = TrainConfig.flip,
    shuffle_buffer: Annotated[
        int, typer.Option(help="Images of a stream that are shuffled at a time.", rich_help_panel=DATA)
    ] = TrainConfig.shuffle_buffer,
    cache: Annotated[
        str,
        typer.Option(
            help="Where decoded images are kept: the user's cache folder, memory only, or a folder.",
            rich_help_panel=DATA,
            metavar="auto|off|DIR",
        ),
    ] = TrainConfig.cache,
    width: Annotated[
        int | None,
        typer.Option(
            help="Channels of the first block; the others are its 2, 4, 8 and 16 fold.",
            show_default=str(VAEOptions.width),
            rich_help_panel=MODEL,
        ),
    ] = None,
    latent_dim: Annotated[
        int | None, typer.Option(help="Latent channels.", show_default="16 x width", rich_help_panel=MODEL)
    ] = None,
    beta: Annotated[
        float | None,
        typer.Option(
            help="Weight of the VAE's KL term. The report's listing runs 2.5e-5; its hyperparameter table says 2.5e-4.",
            show_default=str(VAEOptions.beta),
            rich_help_panel=MODEL,
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", help="Any option of the model; repeatable.", rich_help_panel=MODEL, metavar="KEY=VALUE"
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="Bundled option values: the report's, or minutes on a laptop's CPU. Flags win over them.",
            rich_help_panel=RECIPE,
            **choice(recipe_names()),
        ),
    ] = "report",
    config: Annotated[
        Path | None,
        typer.Option(
            help="Option values from a TOML file, or those of a run, by its folder or config.json; flags win over it.",
            rich_help_panel=RECIPE,
            metavar="FILE.toml|RUN",
            autocompletion=complete_config,
        ),
    ] = None,
    epochs: Annotated[
        int,
        typer.Option(help="Passes over the images; may grow on resume.", rich_help_panel=RECIPE),
    ] = TrainConfig.epochs,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Train so many steps in place of epochs; a stream has no others. May grow on resume.",
            rich_help_panel=RECIPE,
            metavar="N",
        ),
    ] = TrainConfig.steps,
    epoch_steps: Annotated[
        int, typer.Option(help="Of a stream, the steps between two validations.", rich_help_panel=RECIPE)
    ] = TrainConfig.epoch_steps,
    batch_size: Annotated[
        int, typer.Option(help="Images a step, of all processes together.", rich_help_panel=RECIPE)
    ] = TrainConfig.batch_size,
    accumulate: Annotated[
        int,
        typer.Option(
            help="Take each batch in K pieces, one after the other: the same step in less memory (batch statistics are "
            "each piece's own).",
            rich_help_panel=MACHINE,
            metavar="K",
        ),
    ] = TrainConfig.accumulate,
    sync_batchnorm: Annotated[
        str,
        typer.Option(
            help="Take batch statistics over all processes; auto does on CUDA, PyTorch knows no other.",
            rich_help_panel=MACHINE,
            **choice(SYNC_MODES),
        ),
    ] = TrainConfig.sync_batchnorm,
    lr: Annotated[
        float,
        typer.Option(
            help="Adam's learning rate; halved when the train loss stalls for 10 epochs.", rich_help_panel=RECIPE
        ),
    ] = TrainConfig.lr,
    ema: Annotated[
        float | None,
        typer.Option(
            help="Validate and keep an exponential moving average of the weights.",
            rich_help_panel=RECIPE,
            metavar="DECAY",
        ),
    ] = TrainConfig.ema,
    patience: Annotated[
        int | None,
        typer.Option(help="Stop after N epochs without a better validation loss.", rich_help_panel=RECIPE, metavar="N"),
    ] = TrainConfig.patience,
    out: Annotated[
        Path | None,
        typer.Option(
            help="This run folder and no other.",
            show_default="RUNS/MODEL, RUNS/MODEL-2, …",
            rich_help_panel=RUN,
            metavar="DIR",
        ),
    ] = TrainConfig.out,
    runs: Runs = TrainConfig.runs,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin the run again, dropping what it saved.", rich_help_panel=RUN)
    ] = TrainConfig.restart,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print options, size, memory, steps and time of the run, from a few timed steps, and write nothing.",
            rich_help_panel=RUN,
        ),
    ] = False,
    checkpoint_every: Annotated[
        float,
        typer.Option(
            help="Minutes between checkpoints: the most work that a power cut costs.",
            rich_help_panel=RUN,
            metavar="MINUTES",
        ),
    ] = TrainConfig.checkpoint_every,
    log: Annotated[
        str | None,
        typer.Option(
            help="Write numbers, pictures and options for TensorBoard into the run folder (extra: tensorboard).",
            rich_help_panel=RUN,
            **choice(LOGS),
        ),
    ] = TrainConfig.log,
    seed: Seed = TrainConfig.seed,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="Allow only algorithms that give the same bits twice.", rich_help_panel=RUN
        ),
    ] = TrainConfig.deterministic,
    device: Device = TrainConfig.device,
    precision: Precision = TrainConfig.precision,
    compile: Annotated[
        str,
        typer.Option(
            help="Compile the training step; auto does in runs long enough to earn the time back.",
            rich_help_panel=MACHINE,
            **choice(COMPILE_MODES),
        ),
    ] = TrainConfig.compile,
    workers: Workers = TrainConfig.workers,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train MODEL on a folder of images, and write a run folder.

    The same command again resumes its run; other options begin another. The defaults are the report's recipe.
    """
    flags = {key: value for key, value in given(context).items() if key not in _NOT_OF_THE_RUN}
    train_config = layer(model, {**flags, "options": _parse_options(option or [])}, config)

    if dry_run:
        from aecli.cli.dry_run import show_dry_run

        show_dry_run(train_config, as_json=json, quiet=quiet)
        return

    from aecli.cli.live import show_training  # after the options are known to be right: this imports torch

    show_training(train_config, as_json=json, quiet=quiet)


def _parse_options(texts: list[str]) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ConfigError(f"--option {text}: expected KEY=VALUE")
        if key in parsed:
            raise ConfigError(f"--option {key}: given twice")
        parsed[key.replace("-", "_")] = value
    return parsed
