"""Prints a Markdown table: PSNR, SSIM and LPIPS of the same images under different definitions.

python examples/which_number.py              # needs no network
python examples/which_number.py vgg squeeze  # with these networks too, whose weights do not ship
"""

import sys
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from skimage import data
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio as psnr
from skimage.metrics import structural_similarity as ssim

from aecli.metrics.lpips import LPIPS
from aecli.progress import ignore

WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
SIDE, QUALITY, BORDER = 256, 20, 4


def photographs():
    """Yield five photographs that ship with scikit-image, center-cropped and resized to 256²."""
    for pixels in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.immunohistochemistry()):
        side = min(pixels.shape[:2])
        top, left = (pixels.shape[0] - side) // 2, (pixels.shape[1] - side) // 2
        square = Image.fromarray(pixels[top : top + side, left : left + side])
        yield np.array(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def degraded(pixels):
    """Return the image after JPEG compression at quality 20."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return np.array(Image.open(file))


def luma(pixels):
    """Return Y of ITU-R BT.601, 16 to 235, as in super-resolution papers."""
    return rgb2ycbcr(pixels)[..., 0]


def halved(pixels):
    """Return the image at half its size."""
    return np.array(Image.fromarray(pixels).resize((SIDE // 2, SIDE // 2), Image.Resampling.BICUBIC))


def lpips_of(net, pairs):
    """Return the mean LPIPS with network `net`."""
    network = LPIPS.from_net(net, None, ignore)
    truths, others = (
        torch.from_numpy(np.stack(side)).permute(0, 3, 1, 2).contiguous() for side in zip(*pairs, strict=True)
    )
    return float(network.distance(network.features(truths), network.features(others)).mean())


def table(nets=("alex",)):
    """Return rows of (metric, definition, number)."""
    pairs = [(pixels, degraded(pixels)) for pixels in photographs()]
    ys = [(luma(a), luma(b)) for a, b in pairs]
    cut = [(a[BORDER:-BORDER, BORDER:-BORDER], b[BORDER:-BORDER, BORDER:-BORDER]) for a, b in ys]
    small = [(halved(a), halved(b)) for a, b in pairs]
    mse = np.mean([np.mean((a.astype(float) - b) ** 2) for a, b in pairs])

    def mean(function, chosen, **options):
        return np.mean([function(a, b, data_range=255, **options) for a, b in chosen])

    wang, plain = mean(ssim, pairs, channel_axis=-1, **WANG), mean(ssim, pairs, channel_axis=-1)
    rows = [
        ("PSNR", "**aecli**: 8-bit RGB, mean over images", f"{mean(psnr, pairs):.2f}"),
        ("", "of the mean MSE of all images (aecli's `pooled`)", f"{10 * np.log10(255**2 / mse):.2f}"),
        ("", "Y channel (BT.601)", f"{mean(psnr, ys):.2f}"),
        ("", f"Y channel, {BORDER} pixels of border cut off", f"{mean(psnr, cut):.2f}"),
        ("", "both reduced to half first", f"{mean(psnr, small):.2f}"),
        ("SSIM", "**aecli**: Wang et al., 11×11 Gaussian window, RGB", f"{wang:.4f}"),
        ("", "scikit-image's default: 7×7 uniform (`--ssim-window uniform`)", f"{plain:.4f}"),
        ("", "Wang et al., Y channel", f"{mean(ssim, ys, **WANG):.4f}"),
        ("", "both reduced to half first", f"{mean(ssim, small, channel_axis=-1, **WANG):.4f}"),
        ("LPIPS", "**aecli**: v0.1, AlexNet", f"{lpips_of('alex', pairs):.4f}"),
        ("", "both reduced to half first", f"{lpips_of('alex', small):.4f}"),
    ]
    others = [net for net in nets if net != "alex"]
    return rows + [("", f"over {net} (`--lpips-net {net}`)", f"{lpips_of(net, pairs):.4f}") for net in others]


def markdown(rows):
    """Return the rows as a table."""
    return "\n".join(["| | how | number |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)])


if __name__ == "__main__":
    print(markdown(table(tuple(sys.argv[1:]))))
