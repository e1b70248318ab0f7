"""Whatever computes, computes where it is told to: forward passes on a pretended CUDA device, without a GPU."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aecli.configs import EvalConfig
from aecli.configs.checks import BOTTLENECKS, DISTANCES, LPIPS_NETS, SSIM_WINDOWS
from aecli.configs.train import ObjectiveConfig, OptimizationConfig
from aecli.data import batches
from aecli.data.orientations import epoch_orientations
from aecli.inference.loaded_model import LoadedModel
from aecli.metrics import feature_networks, lpips
from aecli.metrics.lpips import LPIPS
from aecli.metrics.network_weights import Weights, head_weights
from aecli.metrics.registry import BUILDERS, build_metrics
from aecli.models import registry
from aecli.models.base import Autoencoder, Prediction, Prior
from aecli.progress import ignore, never
from aecli.runs.folder import Located
from aecli.runtime.device import Placement
from aecli.runtime.distributed import Distributed
from aecli.sampling.latent_prior import LatentPrior
from aecli.training.inputs.image_sets import ImageSet
from aecli.training.objectives import PIXEL_LOSSES, Objective
from aecli.training.state import TrainState
from aecli.training.validation import ValidationMetrics, validate
from tests.support.fake_cuda import CUDA, fake_cuda

SIDE = 64
SMALL = {
    "width": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "codebook_size": 16, "codebooks": 2,
    "levels": (5, 5), "channels": 4, "latent_channels": 6, "side": 2, "heads": 2,
}  # fmt: skip
KINDS = [(name, {}) for name in registry.names()]
KINDS += [("resnet", {"bottleneck": bottleneck}) for bottleneck in BOTTLENECKS if bottleneck != "none"]
KINDS += [("resnet", {"bottleneck": "vq", "distance": distance}) for distance in DISTANCES if distance != "euclidean"]
EVERYTHING = {"perceptual_weight": 0.1, "ssim_weight": 0.1, "adversarial_weight": 0.1, "adversarial_start": 0}


@pytest.fixture(scope="module")
def heads():
    return {net: head_weights(net) for net in LPIPS_NETS}


@pytest.fixture
def cuda(heads, monkeypatch):
    """The device, and networks with random weights: files can't be read onto it."""
    monkeypatch.setattr(lpips, "head_weights", heads.__getitem__)
    monkeypatch.setattr(lpips, "backbone_weights", lambda *_: Weights({}, Path("none"), ""))
    monkeypatch.setattr(lpips, "_load", lambda *_: None)
    with fake_cuda():
        yield CUDA


def build(name: str, **options: object) -> Autoencoder | Prior:
    """A small model on the device."""
    known = {field.name for field in dataclasses.fields(registry.load(name).Options)}
    given = {key: value for key, value in (SMALL | options).items() if key in known}
    return registry.build(name, registry.resolve_options(name, given)).to(CUDA)


@pytest.mark.parametrize("name", registry.names())
def test_models_with_group_norms_train_in_pytorchs_own_layout_on_cuda_alone(name):
    model = registry.build_on_meta(name, registry.resolve_options(name, {}))
    has_groups = any(isinstance(layer, nn.GroupNorm) for layer in model.modules())
    assert has_groups == (name in ("kl", "vq"))
    for device in ("cuda:1", "cpu"):
        placement = Placement(torch.device(device), "bf16", channels_last=True).for_training(model)
        assert placement.channels_last == (device == "cpu" or not has_groups)


def images(count: int = 2, dtype: torch.dtype = torch.float32, height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.empty(count, 3, height, width, dtype=dtype, device=CUDA)


def devices(*tensors: Tensor | None) -> set[str]:
    return {each.device.type for each in tensors if each is not None}


class TestTheDevice:
    class Shift(nn.Module):
        """Adds a constant that does not move with it, or one that does."""

        def __init__(self, moves: bool) -> None:
            super().__init__()
            self.shift = nn.Buffer(torch.ones(3, 1, 1)) if moves else torch.ones(3, 1, 1)

        def forward(self, values: Tensor) -> Tensor:
            return values + self.shift

    def test_a_constant_that_stays_on_the_cpu_is_caught(self, cuda):
        assert devices(self.Shift(moves=True).to(cuda)(images())) == {"cuda"}
        with pytest.raises(RuntimeError, match="device"):
            self.Shift(moves=False).to(cuda)(images())

    def test_so_is_an_array_of_a_tensor_that_was_not_copied_back(self, cuda):
        assert images().cpu().numpy().shape == (2, 3, SIDE, SIDE)
        with pytest.raises(TypeError, match="can't convert a CUDA tensor"):
            images().numpy()

    def test_autocast_computes_there_in_bf16(self, cuda):
        layer = nn.Conv2d(3, 4, 1).to(cuda)
        with Placement(cuda, "bf16", channels_last=True).autocast():
            assert layer(images()).dtype == torch.bfloat16


@pytest.mark.parametrize(("name", "options"), KINDS, ids=str)
def test_models(cuda, name, options):
    """As training takes them, in bf16, and as they are used, in fp32."""
    model = build(name, **options)
    examples = torch.empty(2, *model.example_shape(SIDE), device=cuda)
    if isinstance(model, Autoencoder):
        model.prepare([examples, examples])
        assert devices(*model.parameters(), *model.buffers()) == {"cuda"}
    noise = model.train().draw_noise(2, SIDE)
    with Placement(cuda, "bf16", channels_last=True).autocast():
        made = model.predict(examples, noise)
    observed = {key: value.detach() for key, value in made.observed.items()}
    found = [made.output, made.target, *made.terms.values(), *made.stats.values(), *observed.values()]
    assert devices(*found, noise) == {"cuda"}
    if observed:
        model.after_step(model.step_sums(observed, 0, 2))
    model.eval()
    assert devices(model.predict(examples).output, *model.parameters(), *model.buffers()) == {"cuda"}
    if isinstance(model, Autoencoder):
        latents, log_variances = model.encode_distribution(examples)
        assert devices(latents, log_variances, model.indices(latents), model.decode(latents)) == {"cuda"}


def test_codes_become_latents(cuda):
    for bottleneck in ("fsq", "vq"):
        model = build("resnet", bottleneck=bottleneck).eval()
        codes = model.indices(model.encode(images()).latent)
        assert devices(codes, model.bottleneck.latents(codes)) == {"cuda"}


def test_priors(cuda):
    prior = registry.build("prior", registry.resolve_options("prior", {key: SMALL[key] for key in
                                                                       ("width", "channels", "latent_channels",
                                                                        "side")}))  # fmt: skip
    latents = torch.empty(8, 6, 2, 2)
    prior.partial_fit(latents)
    prior.to(cuda).fit()
    whitened = prior.whiten(latents.to(cuda))
    assert devices(whitened, prior.unwhiten(whitened), prior.sample(whitened, 2), *prior.buffers()) == {"cuda"}
    drawn = LatentPrior("flow", (6, 2, 2), 1.0, 0, trained=prior, flow_steps=2).sample([0, 1])
    assert devices(drawn) == {"cpu"} and drawn.shape == (2, 6, 2, 2)


class TestObjectives:
    @pytest.mark.parametrize(("pixel_loss", "net"), list(zip(PIXEL_LOSSES, LPIPS_NETS, strict=True)))
    def test_all_parts_are_computed_where_the_model_is(self, cuda, pixel_loss, net):
        model = build("vae").train()
        objective = Objective(ObjectiveConfig(pixel_loss=pixel_loss, **EVERYTHING), model, LPIPS.from_net(net)).to(cuda)
        placement = Placement(cuda, "bf16", channels_last=True)
        state = TrainState(model, objective, placement, OptimizationConfig())
        with placement.autocast():
            prediction = model.predict(images(), model.draw_noise(2, SIDE))
        losses = objective.model_loss(prediction, 5)
        assert devices(losses.total, *losses.parts.values()) == {"cuda"}
        state.add(losses.total, {**losses.parts, **prediction.stats}, 0.5)
        critic = objective.critic_loss("discriminator", prediction.output, prediction.target, 0.5)
        state.add(None, critic.parts, 0.5)
        objective.end_step("discriminator", Distributed())
        assert devices(critic.total, state.sums, *objective.buffers()) == {"cuda"}

    def test_a_target_on_the_cpu_is_caught(self, cuda):
        model = build("ae")
        objective = Objective(ObjectiveConfig(ssim_weight=0.1), model).to(cuda)
        with pytest.raises(RuntimeError, match="device"):
            objective.model_loss(Prediction(images(), images().cpu()), 0)


CHOICES = [(name, {}) for name in BUILDERS]
CHOICES += [("lpips", {"lpips_net": net}) for net in LPIPS_NETS if net != "alex"]
CHOICES += [("ssim", {"ssim_window": window}) for window in SSIM_WINDOWS if window != "gaussian"]
CHOICES += [(name, {"crop_border": 4}) for name in ("psnr", "lpips")]


class TestMetrics:
    @pytest.mark.parametrize(("name", "options"), CHOICES, ids=str)
    def test_values_come_back_from_the_device(self, cuda, name, options):
        (metric,) = build_metrics(EvalConfig(gt="gt", pred=("pred",), metrics=(name,), **options))
        loaded = metric.load(cuda, ignore)
        for dtype in (torch.uint8, torch.uint16) if loaded.takes_deep else (torch.uint8,):
            values = loaded.against(images(2, dtype, 200, 180))(images(2, dtype, 200, 180))
            assert values.shape == (2,) and values.dtype == torch.float64 and devices(values) == {"cpu"}

    def test_features(self, cuda):
        network = feature_networks.alex_features(cuda, ignore)
        assert devices(network.compute(images(2, torch.uint8))) == {"cuda"}

    @pytest.mark.slow
    def test_inception_features(self, cuda, monkeypatch):
        inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
        network = inception.FeatureExtractorInceptionV3
        monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **options: {})
        monkeypatch.setattr(network, "load_state_dict", lambda self, state: None)
        monkeypatch.setattr(feature_networks, "inception_file", lambda: Path("none"))
        monkeypatch.setattr(feature_networks, "checked_sha256", lambda *_: "")
        monkeypatch.setattr(feature_networks, "_inception", lambda _: network("inception-v3-compat", ["2048"]))
        compute = feature_networks.inception_features(cuda, ignore, "--metrics fid").compute
        assert devices(compute(images(2, torch.uint8))) == {"cuda"}


class TestBatches:
    @pytest.fixture(autouse=True)
    def unpinned(self, monkeypatch):
        """Memory is pinned by CUDA's driver, in the threads that read."""
        stack = batches.stack
        monkeypatch.setattr(batches, "stack", lambda *args: stack(*args[:4], False, *args[5:]))

    @pytest.mark.parametrize("where", ["array", "device"])
    def test_they_are_normalised_on_the_device(self, cuda, where):
        pixels = np.zeros((5, 3, 8, 8), np.uint8)
        source = pixels if where == "array" else torch.from_numpy(pixels).to(cuda)
        turned = epoch_orientations(5, 0, 0, flip=True, turns=True)
        found = list(batches.iterate(source, np.arange(5), 2, cuda, channels_last=True, orientations=turned))
        assert [len(batch) for batch in found] == [2, 2, 1]
        assert devices(*found) == {"cuda"} and {batch.dtype for batch in found} == {torch.float32}

    @pytest.mark.parametrize("name", ["vae", "prior"])
    def test_they_are_validated_there(self, cuda, name):
        model = build(name)
        examples = np.zeros((3, *model.example_shape(SIDE)), np.uint8 if name == "vae" else np.float32)
        objective = Objective(ObjectiveConfig(), model).to(cuda)
        measures = ValidationMetrics(objective, LPIPS.from_net("alex").to(cuda), 3)
        placement = Placement(cuda, "fp32", channels_last=True)
        scores = validate(model, ImageSet(examples, np.arange(3)), measures, 2, placement, never, Distributed())
        assert (scores.lpips is not None) == (name == "vae")


class TestLoadedModels:
    @pytest.fixture(params=[("vae", {}), ("resnet", {"bottleneck": "kl"}), ("resnet", {"bottleneck": "fsq"})], ids=str)
    def loaded(self, cuda, request):
        name, options = request.param
        placement = Placement(cuda, "bf16", channels_last=True)
        located = Located(Path("none"), None, name, None)
        return LoadedModel(build(name, **options).eval(), located, placement, SIDE, "squash", name)

    def test_images_go_there_and_come_back(self, loaded):
        pixels = np.zeros((2, 3, 50, 70), np.uint8)
        assert loaded.reconstruct(pixels).shape == pixels.shape
        latents, log_variances = loaded.latents(loaded.batch(np.zeros((2, 3, SIDE, SIDE), np.uint8)))
        assert (log_variances is None) == (getattr(loaded.model.options, "bottleneck", "") == "fsq")
        decoded = loaded.decode_all(torch.from_numpy(latents), exact=True)
        assert devices(decoded) == {"cpu"} and decoded.shape == (2, 3, SIDE, SIDE)

    def test_tile_by_tile(self, loaded):
        pixels = np.zeros((1, 3, 130, 70), np.uint8)
        assert loaded.with_tile("64").reconstruct(pixels).shape == pixels.shape
