"""Words for the columns of metrics.csv, whatever losses and metrics a run has."""

_WORDS = {"recon": "reconstruction", "kl": "KL divergence", "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS",
          "ssim_loss": "1 - SSIM"}  # fmt: skip


def metric_name(column: str) -> str:
    """Return what a column holds, without its side: `PSNR` of `val_psnr`, `some term` of `train_some_term`."""
    name = column.removeprefix("train_").removeprefix("val_")
    return _WORDS.get(name, name.replace("_", " "))
