"""Images through the report's own modules, rounded to 8 bits by hand."""

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.reference.report import ReportAE, ReportVAE
from tests.support.trained import SIZE

LATENT = 64  # 16 times the width


def reference(name):
    """The report's module with a run's weights, in evaluation mode and in the memory format that aecli runs in."""
    model = {"ae": ReportAE, "vae": ReportVAE}[name](4, LATENT)
    model.load_state_dict(load_file(f"runs/{name}/model.safetensors"), strict=True)
    return model.eval().to(memory_format=torch.channels_last)


def by_hand(function, images):
    """uint8 (N, H, W, 3) through `function` of (N, 3, H, W) in [-1, 1], rounded to 8 bits."""
    batch = torch.from_numpy(np.stack(images).astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2)
    with torch.no_grad():
        output = function(batch.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1).numpy()
    return np.rint((output.clip(-1, 1) + 1) * 127.5).astype(np.uint8)


def assert_same_pixels(found, expected):
    """Equal, but for a value halfway between two integers that was added up in another order."""
    difference = np.abs(found.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def shrunk(name, folder="images"):
    with Image.open(f"{folder}/{name}.png") as opened:
        return np.array(opened.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
