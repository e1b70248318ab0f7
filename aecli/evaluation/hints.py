"""The ways out of a mismatch: options with which the same command goes through."""

from collections.abc import Sequence

from aecli.configs import EvalConfig
from aecli.evaluation.pairing import Pairing, Size
from aecli.evaluation.unpaired import Unpaired
from aecli.metrics import lpips, ssim
from aecli.metrics.base import Metric

_CROPPED = 8  # pixels that tools cut off a side at most, to make it a multiple of their scale


def ways_out(pairing: Pairing, metrics: Sequence[Metric], config: EvalConfig) -> list[str]:
    """Return what to change so that these images can be measured, best first."""
    kinds = {each.kind for each in pairing.unpaired}
    ways = [pairing.renaming] if pairing.renaming else []
    if kinds == {"size"}:
        ways += _for_sizes(pairing, config)
    elif kinds == {"small"}:
        ways += _for_small(pairing.unpaired, metrics, config)
    elif kinds == {"small", "size"}:
        sizes, small = _for_sizes(pairing, config), _for_small(pairing.unpaired, metrics, config)
        ways += [f"{sizes[0]}, with {small[0]}"]
    if pairing.pairs and config.on_mismatch != "skip":
        ways.append("--on-mismatch skip measures only images that pair")
    return ways


def _for_sizes(pairing: Pairing, config: EvalConfig) -> list[str]:
    wrong = [(each.size, each.truth_size) for each in pairing.unpaired if each.kind == "size"]
    if all(size == truth[::-1] for size, truth in wrong):
        return ["the sides are swapped, as by a tool that ignores EXIF orientation: remove it from --gt "
                "(magick IN -strip OUT), or turn the predictions"]  # fmt: skip
    if all(abs(a - b) <= _CROPPED for size, truth in wrong for a, b in zip(size, truth, strict=True)):
        return ["--on-mismatch crop cuts both to their common size from the top left"]
    side = _common_square({size for size, _ in wrong} | {pair.size for pair in pairing.pairs})
    if side and side != config.image_size and all(min(truth) >= side for _, truth in wrong):
        return [f"--image-size {side} --fit crop (or squash) makes of the ground truth what a model of that size gets"]
    return ["--on-mismatch resize resizes predictions"]


def _common_square(sizes: set[Size]) -> int | None:
    """The side of the one square that all sizes are."""
    return height if len(sizes) == 1 and (height := (size := next(iter(sizes)))[0]) == size[1] else None


def _for_small(unpaired: Sequence[Unpaired], metrics: Sequence[Metric], config: EvalConfig) -> list[str]:
    side = min(min(each.size) for each in unpaired if each.kind == "small")
    if side <= 2 * config.crop_border:
        return [f"--crop-border {(side - 1) // 2} leaves some of {side} pixels"]
    fitting = [metric.name for metric in metrics if metric.min_side <= side] or ["psnr"]
    ways = [f"--metrics {','.join(fitting)} needs no more than {side} pixels"]
    failing, inner = {metric.name for metric in metrics} - set(fitting), side - 2 * config.crop_border
    nets = [net for net, least in lpips.MIN_SIDE.items() if least <= inner]
    if failing == {"lpips"} and nets:
        ways.append(f"--lpips-net {nets[0]}, whose weights may be downloaded")
    if failing <= {"ssim", "ssim-y"} and ssim.MIN_SIDE["uniform"] <= inner < ssim.MIN_SIDE["gaussian"]:
        ways.append("--ssim-window uniform")
    return ways
