"""The ways out of a mismatch: options with which the same command goes through."""

from collections.abc import Sequence

from aecli.configs import EvalConfig
from aecli.diagnosis import is_cropped, is_turned
from aecli.evaluation.pairing import Pairing, Size
from aecli.metrics import lpips_choice, ssim
from aecli.metrics.base import Described


def ways_out(pairing: Pairing, metrics: Sequence[Described], config: EvalConfig) -> list[str]:
    """Return what to change so that these images can be measured, best first: options, then what they do."""
    kinds = {each.kind for each in pairing.unpaired}
    ways = [pairing.renaming] if pairing.renaming else []
    if "size" in kinds and kinds <= {"size", "small"}:
        ways += _for_sizes(pairing, metrics, config)
    elif kinds == {"small"}:
        side = min(min(each.size) for each in pairing.unpaired)
        ways += [f"{options} needs no more than {side} pixels a side" for options in _for_side(side, metrics, config)]
    if pairing.pairs and config.on_mismatch != "skip":
        ways.append("--on-mismatch skip measures only images that pair")
    return ways


def _for_sizes(pairing: Pairing, metrics: Sequence[Described], config: EvalConfig) -> list[str]:
    wrong = [(each.size, each.truth_size) for each in pairing.unpaired if each.kind == "size"]
    truths = [truth for _, truth in wrong] + [pair.size for pair in pairing.pairs]
    truths += [each.size for each in pairing.unpaired if each.kind == "small"]
    if is_turned(wrong):
        return ["the sides are swapped, as by a tool that ignores EXIF orientation: remove it from --gt "
                "(magick IN -strip OUT), or turn the predictions"]  # fmt: skip
    side = _common_square({size for size, _ in wrong} | {pair.size for pair in pairing.pairs})
    if config.image_size is None and is_cropped(wrong):
        least = min(map(min, [*truths, *(size for size, _ in wrong)]))
        ways = {"--on-mismatch crop": "cuts both to their common size from the top left"}
    elif side and side != config.image_size and all(min(truth) >= side for _, truth in wrong):
        least, text = side, "makes of the ground truth what a model of that size is given"
        ways = {f"--image-size {side} --fit {fit}": text for fit in ("crop", "squash")}
    else:
        least = min(map(min, truths)) if config.image_size is None else config.image_size
        ways = {"--on-mismatch resize": "resizes predictions"}
    smaller = _for_side(least, metrics, config)
    more = f" {smaller[0]}" if smaller else ""
    return [f"{options}{more} {text}" for options, text in ways.items()]


def _common_square(sizes: set[Size]) -> int | None:
    """The side of the one square that all sizes are."""
    height, width = next(iter(sizes))
    return height if len(sizes) == 1 and height == width else None


def _for_side(side: int, metrics: Sequence[Described], config: EvalConfig) -> list[str]:
    """Options with which images of so short a side can be measured, if they can't as it is."""
    fitting = [metric.name for metric in metrics if metric.min_side <= side]
    failing = {metric.name for metric in metrics} - set(fitting)
    if not failing:
        return []
    if side <= 2 * config.crop_border:
        return ["--crop-border 0 --metrics psnr"]
    ways = [f"--metrics {','.join(fitting or ['psnr'])}"]
    inner = side - 2 * config.crop_border
    if failing == {"lpips"}:
        ways += [f"--lpips-net {net}" for net, least in lpips_choice.MIN_SIDE.items() if least <= inner][:1]
    if failing <= {"ssim", "ssim-y"} and ssim.MIN_SIDE["uniform"] <= inner < ssim.MIN_SIDE["gaussian"]:
        ways.append("--ssim-window uniform")
    return ways
