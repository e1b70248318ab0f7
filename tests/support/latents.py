"""Untrained models in files, pictures in class folders, and readers of latents written as trainers' own are."""

import json
import os
from glob import glob
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from aecli.models import registry
from aecli.runs import checkpoints
from tests.support.images import picture, save_image

SIZE = 32
CLASSES = ("cats", "dogs", "eels")


def write_model(path: Path, name: str, seed: int = 0, fit: str = "squash", **options: Any) -> Path:
    """A small model with random weights."""
    torch.manual_seed(seed)
    given = registry.resolve_options(name, {"width": 4, **options})
    state = registry.build(name, given).state_dict()
    document = {"model": name, "options": vars(given), "image_size": SIZE, "fit": fit}
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.save(path, state, document)
    return path


def write_classes(folder: Path, count: int = 4) -> Path:
    """A folder of `count` pictures in each of three others."""
    for number, name in enumerate(CLASSES):
        for index in range(count):
            save_image(folder / name / f"{index}.png", picture(40, 48, 10 * number + index))
    return folder


class LightningDiTReader:
    """What hustvl/LightningDiT's `ImgLatentDataset` reads, by its steps; `choose` stands for its random number."""

    def __init__(self, folder: Path, choose: float) -> None:
        self.files = sorted(glob(os.path.join(folder, "*.safetensors")))
        self.places = []
        for file in self.files:
            with safe_open(file, framework="pt", device="cpu") as opened:
                count = opened.get_slice("labels").get_shape()[0]
                self.places += [(file, index) for index in range(count)]
        statistics = torch.load(os.path.join(folder, "latents_stats.pt"))
        self.mean, self.std, self.choose = statistics["mean"], statistics["std"], choose

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        file, place = self.places[index]
        with safe_open(file, framework="pt", device="cpu") as opened:
            key = "latents" if self.choose > 0.5 else "latents_flip"
            feature = opened.get_slice(key)[place : place + 1]
            label = opened.get_slice("labels")[place : place + 1]
        feature = (feature - self.mean) / self.std
        return feature.squeeze(0), label.squeeze(0)


class EDM2Reader:
    """What NVlabs/edm2's `ImageFolderDataset` reads of a folder, by its steps."""

    def __init__(self, folder: Path) -> None:
        names = {os.path.relpath(os.path.join(root, name), folder) for root, _, files in os.walk(folder)
                 for name in files}  # fmt: skip
        self.folder = folder
        self.names = sorted(name for name in names if os.path.splitext(name)[1].lower() in (".png", ".jpg", ".npy"))
        labels = json.loads((folder / "dataset.json").read_text())["labels"] if "dataset.json" in names else None
        self.labels = None
        if labels is not None:
            known = dict(labels)
            self.labels = np.array([known[name.replace("\\", "/")] for name in self.names])
            self.labels = self.labels.astype({1: np.int64, 2: np.float32}[self.labels.ndim])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The mean and standard deviation of a latent."""
        with open(self.folder / self.names[index], "rb") as file:
            image = np.load(file)
        image = image.reshape(-1, *image.shape[-2:])
        mean, std = np.split(image, 2)
        return mean, std
