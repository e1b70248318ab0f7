"""What every registered metric promises, whatever it measures, and the choices that the command line offers."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from skimage.data import astronaut
from torch import Tensor

from aecli.configs import EvalConfig
from aecli.configs.checks import FEATURES, IMAGE_METRICS, LPIPS_NETS, SET_METRICS, SSIM_WINDOWS
from aecli.metrics import feature_networks, lpips_choice, set_metrics, ssim
from aecli.metrics.base import Metric
from aecli.metrics.network_weights import BACKBONES
from aecli.metrics.registry import BUILDERS
from aecli.progress import ignore

IDENTICAL = {
    "psnr": float("inf"), "ssim": 1.0, "lpips": 0.0, "ms-ssim": 1.0, "dists": 0.0,
    "psnr-y": float("inf"), "ssim-y": 1.0,
}  # fmt: skip
SYMMETRIC = {"psnr", "ssim", "lpips", "ms-ssim", "dists", "psnr-y", "ssim-y"}


@pytest.fixture
def metric(name, request) -> Metric:
    config = EvalConfig(gt="gt", pred=("pred",))
    if name == "dists":  # whose network doesn't ship: with random weights
        files = request.getfixturevalue("lpips_references")[1]
        config = replace(config, metrics=("dists",), lpips_net="vgg", lpips_weights=files["vgg"])
    return BUILDERS[name](config)


@pytest.fixture
def images(metric) -> Tensor:
    """Five crops of a photograph, uint8 (5, 3, 48, 56) or larger where a metric needs it."""
    photo = torch.from_numpy(astronaut()).permute(2, 0, 1)
    height, width = max(48, metric.min_side), max(56, metric.min_side + 1)
    return torch.stack([photo[:, 40 * i : 40 * i + height, 60 * i : 60 * i + width] for i in range(5)])


def add_noise(images: Tensor, amount: int) -> Tensor:
    noise = torch.randint(-amount, amount + 1, images.shape, generator=torch.Generator().manual_seed(0))
    return (images.int() + noise).clamp(0, 255).to(torch.uint8)


@pytest.fixture
def noisy(images: Tensor) -> Tensor:
    return add_noise(images, 25)


@pytest.mark.parametrize("name", BUILDERS)
class TestEveryMetric:
    @pytest.fixture
    def score(self, metric) -> Callable[[Tensor, Tensor], Tensor]:
        loaded = metric.load(torch.device("cpu"), ignore)
        return lambda references, predictions: loaded.against(references)(predictions)

    def test_describes_itself(self, name, metric):
        assert metric.name == name
        assert name in metric.title.lower() and metric.title[-1] == ("↑" if metric.higher_is_better else "↓")
        assert name.upper() in metric.definition and metric.definition.endswith(".")
        assert metric.format(0.123456789) == f"{0.123456789:.{metric.digits}f}"
        assert metric.format_difference(0.5).startswith("+0.5") and metric.format_difference(None) == "–"
        assert metric.format_interval(None) == ""

    def test_a_value_per_pair(self, score, images, noisy):
        values = score(images, noisy)
        assert values.shape == (5,) and values.dtype == torch.float64 and values.device.type == "cpu"
        assert values.isfinite().all()

    def test_more_noise_is_worse(self, metric, score, images, noisy):
        better, worse = score(images, noisy), score(images, add_noise(images, 100))
        assert (better > worse if metric.higher_is_better else better < worse).all()

    def test_identical_images_have_the_best_value(self, name, metric, score, images, noisy):
        values = score(images, images)
        assert values.tolist() == pytest.approx([IDENTICAL[name]] * 5, abs=1e-12)
        best = torch.maximum if metric.higher_is_better else torch.minimum
        assert torch.equal(best(values, score(images, noisy)), values)

    def test_symmetry(self, name, score, images, noisy):
        if name not in SYMMETRIC:
            pytest.skip("not claimed")
        assert score(images, noisy).tolist() == pytest.approx(score(noisy, images).tolist(), abs=1e-9)

    def test_the_batch_does_not_change_the_values(self, score, images, noisy):
        alone = [score(images[i : i + 1], noisy[i : i + 1]).item() for i in range(5)]
        assert score(images, noisy).tolist() == pytest.approx(alone, abs=1e-6)

    def test_the_memory_layout_does_not_change_the_values(self, score, images, noisy):
        as_decoded = [each.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2) for each in (images, noisy)]
        assert score(*as_decoded).tolist() == pytest.approx(score(images, noisy).tolist(), abs=1e-6)

    def test_inputs_are_not_changed(self, score, images, noisy):
        before = images.clone(), noisy.clone()
        score(images, noisy)
        assert torch.equal(images, before[0]) and torch.equal(noisy, before[1])

    def test_the_shortest_side_is_measured_and_a_shorter_one_refused(self, metric, score, images, noisy):
        side = metric.min_side
        assert score(images[..., :side, :], noisy[..., :side, :]).isfinite().all()
        with pytest.raises(ValueError, match="too small|expected"):
            score(images[..., : side - 1, :], noisy[..., : side - 1, :])

    @pytest.mark.parametrize("kind", [torch.uint16, torch.float32])
    def test_more_bits_are_measured_alike_or_refused(self, metric, score, images, noisy, kind):
        deep, noisy_deep = ((each.int() * 257).to(kind) for each in (images, noisy))
        if metric.load(torch.device("cpu"), ignore).takes_deep:
            assert score(deep, noisy_deep).tolist() == pytest.approx(score(images, noisy).tolist())
            assert score(deep, noisy).tolist() == score(deep, noisy_deep).tolist()
        else:
            with pytest.raises(ValueError, match="expected uint8"):
                score(deep, noisy_deep)

    @pytest.mark.parametrize("wrong", ["int", "grey", "empty"])
    def test_other_tensors_are_refused(self, score, images, wrong):
        tensor = {"int": images.int(), "grey": images[:, :1], "empty": images[:0]}[wrong]
        with pytest.raises(ValueError, match="expected uint8"):
            score(tensor, tensor)

    def test_pairs_of_different_shapes_are_refused(self, name, score, images):
        if name in ("lpips", "dists"):
            pytest.skip("it scores features, which have no shape of an image any more")
        with pytest.raises(ValueError, match="expected pairs of one shape"):
            score(images, images[..., 1:])

    def test_pooling_goes_with_infinite_values(self, metric, score, images):
        assert (metric.pool is not None) == bool(score(images, images).isinf().all())


class TestChoicesOfTheCommandLine:
    def test_metrics(self):
        assert tuple(BUILDERS) == IMAGE_METRICS and tuple(set_metrics.SET_METRICS) == SET_METRICS
        for name, metric in set_metrics.SET_METRICS.items():
            assert metric.name == name and metric.features in FEATURES and metric.title == f"{name.upper()} ↓"

    def test_lpips_networks(self):
        assert set(LPIPS_NETS) == set(lpips_choice.MIN_SIDE) == set(BACKBONES)

    @pytest.mark.parametrize("net", LPIPS_NETS)
    def test_each_network_has_its_definition(self, net):
        metric = BUILDERS["lpips"](EvalConfig(gt="gt", pred=("pred",), lpips_net=net))
        assert net in metric.definition and metric.min_side == lpips_choice.MIN_SIDE[net]

    @pytest.mark.parametrize("window", SSIM_WINDOWS)
    def test_each_window_has_its_definition(self, window):
        metric = BUILDERS["ssim"](EvalConfig(gt="gt", pred=("pred",), ssim_window=window))
        side = ssim.MIN_SIDE[window]
        assert f"{side}x{side}" in metric.definition and metric.min_side == side

    def test_feature_networks(self):
        assert set(FEATURES) == {"auto", *feature_networks.BUILDERS}
