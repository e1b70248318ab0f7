"""The fast path of training against the plain one: layers, precision, compiling, and training without a compiler."""

import math

import pytest
import torch
from skimage import data
from torch import nn

from aecli.configs import TrainConfig
from aecli.configs.train import ObjectiveConfig
from aecli.errors import DeviceError
from aecli.models import matrix_convolution, registry
from aecli.models import mish as mish_module
from aecli.models.layers import Conv2d, ConvTranspose2d
from aecli.models.mish import Mish
from aecli.progress import Notice
from aecli.runtime.device import Placement
from aecli.training import compiling, loop, step
from aecli.training.compiling import StepModel
from aecli.training.events import Finished, Interrupted, Started
from aecli.training.objectives import Objective
from aecli.training.step import compiling_pays
from tests.reference import report
from tests.support.objectives import optimizer
from tests.support.stopping import train_until
from tests.support.trained import assert_same_run

needs_compiler = pytest.mark.skipif(bool(compiling.missing_compiler(torch.device("cpu"))), reason="no C++ compiler")
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(params=["chunked", "compiled"])
def mish(request, monkeypatch):
    """Mish as it runs on a CPU, in chunks that don't divide evenly, and as a compiler sees it, op by op."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: request.param == "compiled")
    monkeypatch.setattr(mish_module, "_CHUNK", 7_001)
    return Mish()


def test_mish_and_its_gradient_are_pytorchs_in_double_precision(mish):
    extremes = torch.tensor([20.0, 20.000002, 19.999998, 88.0, -88.0, 1e4, -1e4, 40.0, 40.00001, 1e20, -1e20, 0.0])
    values = torch.cat([torch.linspace(-110, 110, 40_001), extremes])
    ours, exact = values.clone().requires_grad_(), values.double().requires_grad_()
    mish(ours).sum().backward()
    nn.functional.mish(exact).sum().backward()
    torch.testing.assert_close(mish(values).double(), nn.functional.mish(exact), rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(ours.grad.double(), exact.grad, rtol=0, atol=1e-5)


def test_mish_keeps_nan_and_infinity(mish):
    assert mish(torch.tensor([math.nan, 1.0])).isnan().tolist() == [True, False]
    assert mish(torch.tensor([math.inf])).item() == math.inf


def test_mish_keeps_the_dtype(mish):
    values = torch.linspace(-30, 30, 101, dtype=torch.bfloat16)
    assert mish(values).dtype == torch.bfloat16
    torch.testing.assert_close(mish(values), nn.functional.mish(values.double()).bfloat16(), rtol=0.01, atol=0)


@pytest.mark.parametrize("layout", ["plain", "channels_last", "sliced", "expanded gradient", "mixed"])
def test_mish_takes_any_memory_layout(layout):
    values = torch.randn(3, 4, 50, 60, dtype=torch.float64)
    if layout in ("channels_last", "mixed"):
        values = values.contiguous(memory_format=torch.channels_last)
    if layout == "sliced":
        values = values[:, ::2, 3:, :-1]
    ours, theirs = values.detach().requires_grad_(), values.detach().clone().requires_grad_()
    gradient = (
        torch.ones(()).double().expand(values.shape) if "expanded" in layout else torch.randn(values.shape).double()
    )
    one, two = Mish()(ours), nn.functional.mish(theirs)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)
    one.backward(gradient)
    two.backward(gradient)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)


def test_mish_can_be_differentiated_twice_and_traced():
    values = torch.linspace(-3, 3, 13, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(Mish(), values)
    traced = torch.jit.trace(Mish(), torch.randn(1, 2, 4, 4), check_trace=False)
    other = torch.randn(2, 2, 8, 8)
    torch.testing.assert_close(traced(other), nn.functional.mish(other))


def test_mish_of_nothing_is_nothing():
    assert Mish()(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "others"), [((5, 7), {}), ((4, 4), {"groups": 2}), ((3, 2), {"bias": False})])
def test_a_transposed_convolution_and_its_gradients_are_pytorchs(channels, others, layout):
    torch.manual_seed(0)
    ours = ConvTranspose2d(*channels, 4, 2, 1, **others).double()
    theirs = nn.ConvTranspose2d(*channels, 4, 2, 1, **others).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    values = torch.randn(3, channels[0], 6, 9, dtype=torch.float64).contiguous(memory_format=layout)
    mine, other = values.clone().requires_grad_(), values.clone().requires_grad_()
    weights = torch.randn_like(theirs(other))
    (ours(mine) * weights).sum().backward()
    (theirs(other) * weights).sum().backward()
    torch.testing.assert_close(ours(mine), theirs(other), rtol=0, atol=1e-12)
    torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-12)
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=1e-11)


LARGE = {
    "strided": (Conv2d, nn.Conv2d, (5, 7, 4, 2, 1), {}),
    "3x3": (Conv2d, nn.Conv2d, (5, 7, 3, 1, 1), {}),
    "without bias": (Conv2d, nn.Conv2d, (5, 7, 4, 2, 1), {"bias": False}),
    "transposed": (ConvTranspose2d, nn.ConvTranspose2d, (5, 7, 4, 2, 1), {}),
    "transposed, uneven": (ConvTranspose2d, nn.ConvTranspose2d, (5, 7, (4, 3), (2, 1), (1, 0)), {"bias": False}),
}


@pytest.mark.parametrize("most_positions", [0, 10**6], ids=["large grid", "small grid"])
@pytest.mark.parametrize("kind", LARGE)
def test_convolutions_with_a_large_weight_are_pytorchs_and_the_same_every_time(kind, most_positions, monkeypatch):
    monkeypatch.setattr(matrix_convolution, "_LEAST_WEIGHT", 1)
    monkeypatch.setattr(matrix_convolution, "_MOST_POSITIONS", most_positions)
    monkeypatch.setattr(matrix_convolution, "_MOST_ELEMENTS", 6000)  # two images at a time
    used, product = [], matrix_convolution.weight_gradient
    monkeypatch.setattr(matrix_convolution, "weight_gradient", lambda *given: used.append(1) or product(*given))
    torch.manual_seed(0)
    own, pytorchs, sizes, others = LARGE[kind]
    ours, theirs = own(*sizes, **others), pytorchs(*sizes, **others).double()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    values = torch.randn(3, 5, 6, 8).requires_grad_()
    exact = values.detach().double().requires_grad_()
    weights = torch.randn(theirs(exact).shape)

    def differentiated(layer, given):
        made = layer(given)
        return made, *torch.autograd.grad(made, (given, *layer.parameters()), weights.to(made.dtype))

    found = differentiated(ours, values)
    for one, two in zip(found, differentiated(theirs, exact), strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=2e-5)
    assert used and all(map(torch.equal, found, differentiated(ours, values)))


@pytest.mark.parametrize("name", ["ae", "vae"])
def test_the_objective_and_its_gradients_are_those_of_the_plain_network(name, monkeypatch):
    torch.manual_seed(0)
    model = registry.build(name, registry.resolve_options(name, {"width": 4})).train()
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    noise = model.draw_noise(4, 64)
    found = []
    for least in (1, 10**9):
        monkeypatch.setattr(matrix_convolution, "_LEAST_WEIGHT", least)
        prediction = model.predict(images) if noise is None else model.predict(images, noise)
        loss = Objective(ObjectiveConfig(), model).model_loss(prediction, 0).total
        found.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=0)
    for one, two in zip(*found, strict=True):
        assert (one - two).norm() <= 1e-4 * two.norm() + 1e-6  # of a bias before a norm it is zero


def test_autocast_reaches_a_transposed_convolution_as_it_does_pytorchs():
    torch.manual_seed(0)
    ours, theirs = ConvTranspose2d(3, 5, 4, 2, 1), nn.ConvTranspose2d(3, 5, 4, 2, 1)
    theirs.load_state_dict(ours.state_dict())
    values = torch.randn(2, 3, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        one, two = ours(values), theirs(values)
    assert one.dtype == two.dtype == torch.bfloat16
    assert torch.equal(one, two)
    one.float().square().sum().backward()
    two.float().square().sum().backward()
    assert ours.weight.grad.dtype == torch.float32
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=0.02, atol=0.02)


@pytest.mark.soak
@needs_compiler
def test_bf16_and_compiled_training_keeps_to_the_loss_curve_of_the_reports_fp32_loop():
    """200 steps of the VAE on crops of a photograph; means over 20 steps agree within 2 %, as the noise is the same."""
    torch.manual_seed(0)
    model = registry.build("vae", registry.resolve_options("vae", {"width": 8})).train()
    reference = report.ReportVAE(8, 128).train()
    reference.load_state_dict(model.state_dict())
    model = model.to(memory_format=torch.channels_last)
    placement = Placement(CPU, "bf16", channels_last=True)
    step_model, objective = StepModel(model), Objective(ObjectiveConfig(), model)
    assert step_model.compile(placement, 8, 64) is None
    assert step_model.is_compiled
    ours, theirs = optimizer(model, 1e-3), torch.optim.Adam(reference.parameters(), lr=1e-3, betas=(0.5, 0.999))
    photograph = torch.from_numpy(data.astronaut().copy()).permute(2, 0, 1).float() / 127.5 - 1
    curves: tuple[list[float], list[float]] = ([], [])
    for number in range(200):
        corners = torch.randint(0, 512 - 64, (8, 2), generator=torch.Generator().manual_seed(number)).tolist()
        batch = torch.stack([photograph[:, y : y + 64, x : x + 64] for y, x in corners])
        torch.manual_seed(1000 + number)
        with placement.autocast():
            prediction = step_model(batch.contiguous(memory_format=torch.channels_last))
        losses = objective.model_loss(prediction, number)
        losses.total.backward()
        ours.step()
        ours.zero_grad()
        torch.manual_seed(1000 + number)
        expected = report.vae_loss(reference, batch, torch.randn(8, 128, 2, 2))
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        curves[0].append(losses.total.item())
        curves[1].append(expected.item())
    one, two = (torch.tensor(curve).view(10, 20).mean(dim=1) for curve in curves)
    assert two[-1] < 0.5 * two[0]  # it learns, so that there is something to agree on
    torch.testing.assert_close(one, two, rtol=0.02, atol=0)


@pytest.fixture
def config(tmp_path, image_folder):
    folder = image_folder(*(f"{seed}.png" for seed in range(8)), height=32, width=32)
    return TrainConfig(
        model="ae", data=str(folder), val_fraction=0.2, epochs=2, image_size=32, batch_size=3,
        options={"width": 4}, device="cpu", precision="bf16", runs=tmp_path / "runs",
    )  # fmt: skip


def placement_of(reports):
    return next(each.placement for each in reports if isinstance(each, Started))


def notices(reports):
    return [each.text for each in reports if isinstance(each, Notice)]


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_stopped_in_an_epoch_and_continued_is_the_run_never_stopped(config, tmp_path):
    # Of few operations: without a compiler's cache each takes it two seconds.
    model = "tests.support.plain_models:PlainVAE"
    config = config.replace(compile="on", model=model, options={}, out=tmp_path / "parts")
    whole = list(loop.train(config.replace(out=tmp_path / "whole")))
    train_until(config, 3)
    rest = list(loop.train(config))
    assert placement_of(whole)["compile"] and placement_of(rest)["compile"]
    assert isinstance(rest[-1], Finished)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_compiling_pays_only_in_long_runs_and_on_a_cpu_for_small_steps():
    assert not compiling_pays(CPU, 2_000, 2.5e9)  # `quick` on the demo: two minutes in all
    assert compiling_pays(CPU, 20_000, 2.5e9)
    assert not compiling_pays(CPU, 10**6, 79e9 * 32)  # the report's recipe: slower compiled
    assert not compiling_pays(torch.device("cuda"), 1_000, 79e9 * 32)
    assert compiling_pays(torch.device("cuda"), 57_000, 79e9 * 32)
    assert not compiling_pays(torch.device("mps"), 10**9, 1.0)


PAYS, NEVER_PAYS = 0, 10**9  # steps from which on `auto` compiles


@pytest.fixture
def compiled(monkeypatch):
    """The shapes that compiling was asked for; nothing is compiled."""
    shapes = []

    def pretend(loss, placement, batch_size, image_size):
        shapes.append((batch_size, image_size))
        loss._module.size = batch_size

    monkeypatch.setattr(StepModel, "compile", pretend)
    return shapes


@pytest.mark.parametrize(("first", "then", "times"), [(PAYS, NEVER_PAYS, 2), (NEVER_PAYS, PAYS, 0)])
def test_auto_compiles_where_it_pays_and_a_resumed_run_keeps_its_choice(
    config, monkeypatch, compiled, first, then, times
):
    monkeypatch.setattr(step, "AUTO_COMPILE_STEPS", first)
    began = train_until(config, 3)
    monkeypatch.setattr(step, "AUTO_COMPILE_STEPS", then)
    ended = list(loop.train(config))
    assert isinstance(ended[-1], Finished)
    assert compiled == [(3, 32)] * times
    for reports in (began, ended):
        noticed = any("compiling the training step" in text for text in notices(reports))
        assert noticed == placement_of(reports)["compile"] == bool(times)


@pytest.mark.parametrize("wish", ["auto", "on"])
def test_a_compiler_killed_by_the_same_ctrl_c_leaves_nothing_begun(config, monkeypatch, wish):
    monkeypatch.setattr(step, "AUTO_COMPILE_STEPS", PAYS)
    pressed = []
    monkeypatch.setattr(StepModel, "compile", lambda loss, *shape: pressed.append(1) or "compiling failed: signal 2")
    end = list(loop.train(config.replace(compile=wish), lambda: bool(pressed)))[-1]
    assert isinstance(end, Interrupted)
    assert end.run is None
    assert not (config.run.runs / "ae" / "config.json").exists()


def test_auto_carries_on_with_one_line_where_there_is_no_compiler(config, monkeypatch):
    monkeypatch.setattr(step, "AUTO_COMPILE_STEPS", PAYS)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    reports = list(loop.train(config))
    assert isinstance(reports[-1], Finished)
    assert not placement_of(reports)["compile"]
    assert "training uncompiled: a C++ compiler (g++) is not installed" in notices(reports)


def test_without_a_working_compiler_auto_gives_a_notice_and_on_is_refused(config, monkeypatch, tmp_path):
    monkeypatch.setattr(step, "AUTO_COMPILE_STEPS", PAYS)
    monkeypatch.setattr(compiling.torch, "compile", lambda function, **options: _fail)
    reports = list(loop.train(config))
    assert isinstance(reports[-1], Finished)
    assert "training uncompiled: compiling failed: no headers" in notices(reports)
    with pytest.raises(DeviceError, match="--compile on: compiling failed: no headers"):
        list(loop.train(config.replace(compile="on")))


def _fail(batch):
    raise torch._dynamo.exc.TorchDynamoException("no headers")


def test_compile_on_without_a_compiler_is_refused_before_any_image_is_read(config, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(DeviceError, match=r"--compile on: a C\+\+ compiler \(g\+\+\)"):
        list(loop.train(config.replace(compile="on", data="no-such-folder")))


@needs_compiler
def test_a_damaged_library_in_the_compilers_cache_leaves_the_step_uncompiled(monkeypatch):
    def damaged(*given):
        raise ImportError("cache/ab/cab.so: file too short")

    monkeypatch.setattr(torch, "compile", lambda *given, **options: damaged)
    model = registry.build("ae", registry.resolve_options("ae", {"width": 2})).train()
    step_model = StepModel(model)
    failure = step_model.compile(Placement(CPU, "fp32", channels_last=True), 2, 32)
    assert "cab.so" in failure and "delete it" in failure and not step_model.is_compiled
    assert step_model(torch.zeros(2, 3, 32, 32)).output.shape == (2, 3, 32, 32)
