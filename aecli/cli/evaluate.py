"""`aecli eval`."""

from pathlib import Path
from typing import Annotated

import typer

from aecli.cli.completion import complete_prediction, complete_source
from aecli.cli.options import DATA, MACHINE, OUTPUT, SOURCE, Device, Json, Quiet, Workers, choice
from aecli.configs import FEATURES, LPIPS_NETS, METRICS, MISMATCH_ACTIONS, SSIM_WINDOWS, EvalConfig

MEASURE = "Metrics"


def evaluate(
    gt: Annotated[
        str,
        typer.Option(
            "--gt",
            help=f"Ground truth. {SOURCE}",
            rich_help_panel=DATA,
            metavar="SOURCE",
            autocompletion=complete_source,
        ),
    ],
    pred: Annotated[
        list[str] | None,
        typer.Option(
            "--pred",
            help="Images to compare with it, of the same relative names (suffixes aside); repeatable.",
            rich_help_panel=DATA,
            metavar="[NAME=]SOURCE",
            autocompletion=complete_prediction,
        ),
    ] = None,
    samples: Annotated[
        list[str] | None,
        typer.Option(
            "--samples",
            help="New images, compared with the ground truth as sets, whatever their names; repeatable.",
            rich_help_panel=DATA,
            metavar="[NAME=]SOURCE",
            autocompletion=complete_prediction,
        ),
    ] = None,
    train: Annotated[
        str | None,
        typer.Option(
            help="With --samples: the images trained on; tells whether samples are copies of them.",
            rich_help_panel=DATA,
            metavar="SOURCE",
            autocompletion=complete_source,
        ),
    ] = EvalConfig.train,
    on_mismatch: Annotated[
        str,
        typer.Option(
            help="Images without a partner or of another size: fail, leave them out, or resize the prediction.",
            rich_help_panel=DATA,
            **choice(MISMATCH_ACTIONS),
        ),
    ] = EvalConfig.on_mismatch,
    metrics: Annotated[
        str, typer.Option(help="Which, separated by commas.", rich_help_panel=MEASURE, metavar=",".join(METRICS))
    ] = ",".join(EvalConfig.metrics),
    lpips_net: Annotated[
        str, typer.Option(help="LPIPS' network; alex ships with aecli.", rich_help_panel=MEASURE, **choice(LPIPS_NETS))
    ] = EvalConfig.lpips_net,
    lpips_weights: Annotated[
        Path | None,
        typer.Option(
            help="That network's convolution weights, .safetensors or torchvision's .pth.",
            rich_help_panel=MEASURE,
            metavar="FILE",
        ),
    ] = EvalConfig.lpips_weights,
    ssim_window: Annotated[
        str,
        typer.Option(
            help="Wang's Gaussian window, or scikit-image's plain 7×7 one.",
            rich_help_panel=MEASURE,
            **choice(SSIM_WINDOWS),
        ),
    ] = EvalConfig.ssim_window,
    features: Annotated[
        str,
        typer.Option(
            help="With --samples: what sees them; auto is inception (extra: fid) where its weights are, else alex.",
            rich_help_panel=MEASURE,
            **choice(FEATURES),
        ),
    ] = EvalConfig.features,
    per_image: Annotated[
        Path | None,
        typer.Option(
            help="Write every image's numbers to this file; one that is there is replaced.",
            rich_help_panel=OUTPUT,
            metavar="FILE.csv",
        ),
    ] = EvalConfig.per_image,
    report: Annotated[
        Path | None,
        typer.Option(
            help="Write a page to look at: tables, charts and every image, worst first, in one file (with a folder of "
            "pictures beside it if there are many); one that is there is replaced.",
            rich_help_panel=OUTPUT,
            metavar="FILE.html",
        ),
    ] = EvalConfig.report,
    batch_size: Annotated[int, typer.Option(help="Images at a time.", rich_help_panel=MACHINE)] = EvalConfig.batch_size,
    workers: Workers = EvalConfig.workers,
    device: Device = EvalConfig.device,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare folders of images with a ground-truth folder: PSNR, SSIM and LPIPS, or new images with it as sets."""
    config = EvalConfig(
        gt=gt, pred=tuple(pred or ()), samples=tuple(samples or ()), train=train, features=features,
        metrics=tuple(name.strip() for name in metrics.split(",")), lpips_net=lpips_net,
        lpips_weights=lpips_weights, ssim_window=ssim_window, on_mismatch=on_mismatch, per_image=per_image,
        report=report, batch_size=batch_size, workers=workers, device=device,
    )  # fmt: skip

    from aecli.cli import console

    if config.samples:
        from aecli.evaluation.sets import evaluate_sets

        with console.listener(quiet) as listen:
            sets = evaluate_sets(config, listen)
        if json:
            console.print_json(sets.to_json())
        else:
            console.print_sets(sets)
        return

    from aecli.evaluation.paired import evaluate as run

    with console.listener(quiet) as listen:
        found = run(config, listen)
    if json:
        console.print_json(found.to_json())
    else:
        console.print_evaluation(found)
