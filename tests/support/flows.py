"""A small flow, and the command that trains one on the latents of the VAE of `trained`."""

import torch

from aecli.models import registry

SMALL = {"channels": 4, "width": 32, "depth": 2, "heads": 2}

OPTIONS = [part for key, value in SMALL.items() if key != "width" for part in ("-o", f"{key}={value}")]

TRAIN_PRIOR = ["train", "prior", "--model", "vae", "--width", "32", *OPTIONS, "--epochs", "3", "--batch-size", "4",
         "--device", "cpu", "--quiet"]  # fmt: skip


def build_flow(**options):
    """A flow with `SMALL` sizes and deterministic weights."""
    torch.manual_seed(0)
    return registry.build("prior", registry.resolve_options("prior", {**SMALL, **options}))
