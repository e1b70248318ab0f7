"""`aecli train --dry-run`: what the run would be and cost."""

from aecli.cli import console
from aecli.cli.display import duration, open_display
from aecli.configs import TrainConfig
from aecli.training.dry_run import DryRun, estimate

_OPTIMIZERS = {"adam": "Adam", "adamw": "AdamW", "muon": "Muon and AdamW"}
_STATES = {
    "new": "would be begun",
    "resumes": "would be resumed",
    "finished": "is finished already",
    "refused": "would be refused: it holds something else",
}


def show_dry_run(config: TrainConfig, as_json: bool, quiet: bool) -> None:
    """Estimate and print; nothing is written."""
    with open_display(quiet) as display:
        found = estimate(config, display)
    if as_json:
        console.print_json(found.to_json())
        return
    for line in lines(found):
        console.print_line(line)


def lines(found: DryRun) -> list[str]:
    """Return the estimate in lines of less than 80 columns, apart from names that the user chose."""
    images = "a stream" if found.train_images is None else f"{found.train_images:,} to train on"
    done = f", {found.steps_done:,} done" if found.steps_done else ""
    memory, placement, later = found.memory, found.placement, found.adversarial_seconds_per_step
    parts = {
        "weights": memory.weights, "gradients": memory.gradients,
        _OPTIMIZERS[found.options["optimizer"]]: memory.optimizer, "EMA": memory.average,
    }  # fmt: skip
    augmentation = [("", f"augmented: {found.augmentation}")] if found.augmentation else []
    rows = [
        ("run", f"{found.run} {_STATES[found.state]}"),
        ("images", f"{images}, {found.val_images or 0:,} to validate on"),
        *augmentation,
        ("model", f"{found.options['model']}, {found.parameters:,} parameters, "
                  f"latent {'×'.join(map(str, found.latent_shape))}"),
        *([("", f"keeps {found.kept} of an image")] if found.kept else []),
        ("arithmetic", f"{found.forward_gflop:.3g} GFLOP an image forward, {found.step_gflop:,.4g} a step"),
        ("steps", f"{found.batches_per_epoch:,} an epoch, {found.steps:,} in all{done}"),
        ("machine", f"{placement['device']}, {placement['precision']}, {placement['memory_format']}"),
        ("memory", f"about {_bytes(memory.total)} beside the program itself:"),
        ("", ", ".join(f"{name} {_bytes(size)}" for name, size in parts.items() if size) + ","),
        ("", f"activations {_bytes(memory.activations)}"),
        ("time", f"about {duration(found.seconds)}: {found.seconds_per_step:.3g} s a step, "
                 f"{found.validation_seconds:.3g} s a validation"),
        *([("", f"{later:.3g} s a step with the adversarial loss")] if later is not None else []),
        ("", f"({found.timed_steps} steps timed, not compiled; reading and drawing come on top)"),
    ]  # fmt: skip
    options = {key: value for key, value in found.options.items() if key not in ("model", "model_defaults", "options")}
    options |= found.options["options"]
    listed = [f"  {key.replace('_', '-'):17} {_value(value)}" for key, value in options.items()]
    return [*(f"{name:11} {text}" for name, text in rows), "", "options", *listed]


def _value(value: object) -> str:
    if isinstance(value, dict):  # an autoencoder: path and SHA-256
        value = value["path"]
    return "–" if value is None else str(value)


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
