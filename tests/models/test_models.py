"""The report's models against an independent re-implementation, and the contract that every registered model keeps."""

import dataclasses
import json
import sys

import pytest
import torch

from aecli.errors import CheckpointError, ConfigError, ModelError
from aecli.models import registry
from aecli.models.base import Autoencoder
from aecli.runs import checkpoints
from aecli.training.optim import build_optimizer
from tests.reference import report

PARAMETERS = {"ae": 39_076_163, "vae": 57_952_579}
REFERENCES = {"ae": report.ReportAE, "vae": report.ReportVAE}


def build(name, **options):
    torch.manual_seed(0)
    return registry.build(name, registry.resolve_options(name, options))


def images(n=4, size=64, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_width_parity_with_the_report(name):
    model = build(name).eval()
    reference = REFERENCES[name]()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    reference.load_state_dict(model.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(images(1, 256)), reference.eval()(images(1, 256)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_state_dict_has_the_reports_keys_in_the_reports_order(name):
    keys = list(build(name, width=4).state_dict())
    assert keys == list(REFERENCES[name](4, 64).state_dict())
    assert keys[0] == "encoder.0.weight"
    assert keys[-1] == "decoder.15.bias"
    assert ("encoder.15.weight" in keys) == (name == "vae")


@pytest.mark.parametrize("name", PARAMETERS)
def test_weights_of_the_reports_code_load_into_aecli(name, tmp_path):
    from safetensors.torch import save_file

    torch.manual_seed(5)
    reference = REFERENCES[name](8, 128).eval()
    file = tmp_path / "theirs.safetensors"
    save_file(reference.state_dict(), file)
    model, document = checkpoints.load_model(file)
    assert document["model"] == name
    with torch.no_grad():
        torch.testing.assert_close(model(images()), reference(images()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", PARAMETERS)
def test_ten_training_steps_agree_with_the_reports_loop(name):
    model = build(name, width=8).train()
    reference = REFERENCES[name](8, 128).train()
    reference.load_state_dict(model.state_dict())
    ours, theirs = build_optimizer(model, 1e-4), report.optimizer_for(reference)
    loss_of = {"ae": report.ae_loss, "vae": report.vae_loss}[name]
    for step in range(10):
        batch = images(8, 64, seed=step)
        torch.manual_seed(100 + step)
        loss = model.loss(batch).total
        loss.backward()
        ours.step()
        ours.zero_grad()
        torch.manual_seed(100 + step)
        noise = torch.randn(8, 128, 2, 2)
        expected = loss_of(reference, batch, noise)
        theirs.zero_grad()
        expected.backward()
        theirs.step()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5), f"step {step}"
    # Biases before batch norm have a gradient of zero but for rounding, which Adam blows up; weights don't.
    for key, value in reference.state_dict().items():
        if value.ndim == 4:
            assert (model.state_dict()[key] - value).abs().mean() < 1e-5, key


def test_initialisation_is_kaiming_normal_linear_with_zero_biases():
    model = build("vae", width=16)
    convolution, transposed = model.encoder[9], model.decoder[3]
    # Kaiming normal with gain 1: standard deviation 1/sqrt(fan in), which torch counts over the second axis.
    for layer in (convolution, transposed):
        fan_in = layer.weight.shape[1] * 16
        assert layer.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.02)
        assert not layer.bias.any()
    assert bool((model.encoder[1].weight == 1).all()) and not model.encoder[1].bias.any()


def test_kl_of_a_known_posterior():
    from aecli.models.vae import Posterior

    mean, log_variance = torch.full((2, 3, 1, 1), 2.0), torch.full((2, 3, 1, 1), 0.5)
    # -½ (1 + 0.5 - 4 - e^0.5)
    assert Posterior(mean, log_variance).kl_divergence().item() == pytest.approx(0.5 * (2.5 + 1.6487213))


def test_latent_dim_and_width_shape_the_model():
    model = build("vae", width=4, latent_dim=10)
    assert model.latent_shape(96) == (10, 3, 3)
    assert model.encode(images(1, 96)).shape == (1, 10, 3, 3)


AUTOENCODERS = [name for name in registry.names() if issubclass(registry.load(name), Autoencoder)]


@pytest.mark.parametrize("name", registry.names())
class TestContract:
    """Holds for every registered name, plug-ins included."""

    def examples(self, model, size):
        shape = model.example_shape(size)
        return torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def small(self, name):
        fields = {field.name for field in dataclasses.fields(registry.load(name).Options)}
        return build(name, **({"width": 4} if "width" in fields else {}))

    def test_shapes_and_ranges(self, name):
        if name not in AUTOENCODERS:
            pytest.skip("no autoencoder")
        model = self.small(name)
        size = 2 * model.size_multiple
        latents = model.encode(images(2, size))
        assert latents.shape == (2, *model.latent_shape(size))
        decoded = model.decode(latents)
        assert decoded.shape == (2, 3, size, size)
        assert decoded.abs().max() <= 1
        assert model(images(2, size)).shape == (2, 3, size, size)

    def test_losses_are_scalars_that_train_every_parameter(self, name):
        model = self.small(name).train()
        losses = model.loss(self.examples(model, 2 * model.size_multiple))
        assert losses.total.shape == losses.reconstruction.shape == ()
        losses.total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    def test_evaluation_is_without_randomness(self, name):
        model = self.small(name).eval()
        batch = self.examples(model, 2 * model.size_multiple)
        with torch.no_grad():
            assert torch.equal(model(batch), model(batch))
            assert model.loss(batch).total == model.loss(batch).total
            output = model.loss(batch).output
            assert output is None or torch.equal(output, model(batch))

    def test_checkpoint_round_trip_on_the_user_s_word(self, name, tmp_path):
        model = self.small(name).eval()
        document = {"model": name, "options": dataclasses.asdict(model.options), "image_size": 64, "fit": "squash"}
        checkpoints.save(tmp_path / "model.safetensors", model.state_dict(), document)
        loaded, read = checkpoints.load_model(tmp_path / "model.safetensors", named=name)
        assert isinstance(loaded, registry.load(name)) and read["model"] == name
        for key, value in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[key], value)


def test_unknown_model_names_what_exists():
    with pytest.raises(ModelError, match=r"'vea'\nhint: .*ae, vae, prior.*did you mean"):
        registry.load("vea")


@pytest.mark.parametrize("target", ["no.such.module:Thing", "aecli.models.ae:Thing", "pathlib:Path"])
def test_a_class_that_is_no_model_is_refused(target):
    with pytest.raises(ModelError, match=target.split(":")[0].replace(".", r"\.")):
        registry.load(target)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"wdith": 3}, r"--option wdith.*it has width \(int\), latent_dim \(int\), beta \(float\)"),
        ({"width": "wide"}, "--option width=wide: expected int"),
        ({"width": 1.5}, "--option width=1.5: expected int"),
        ({"beta": "none"}, "--option beta=none: expected float"),
        ({"width": "0"}, "--width 0"),
        ({"beta": -1.0}, "--beta"),
    ],
)
def test_options_are_checked_by_name(given, message):
    with pytest.raises(ConfigError, match=message):
        registry.resolve_options("vae", given)


def test_options_as_typed_become_their_types_and_defaults_count_only_where_they_exist():
    options = registry.resolve_options("ae", {"width": "16", "latent_dim": "none"}, {"beta": 1.0, "latent_dim": 7})
    assert dataclasses.asdict(options) == {"width": 16, "latent_dim": None}


def test_a_class_named_by_the_file_alone_is_not_imported(tmp_path):
    document = {"model": "this.module.would.fail:Class", "options": {}, "image_size": 64, "fit": "squash"}
    checkpoints.save(tmp_path / "m.safetensors", {"a": torch.zeros(1)}, document)
    with pytest.raises(CheckpointError, match="--model this.module.would.fail:Class"):
        checkpoints.load_model(tmp_path / "m.safetensors")


def test_the_working_folder_is_imported_from_only_for_a_class_that_the_user_names(tmp_path, monkeypatch):
    """What lies there may be a stranger's, under the name of something that PyTorch looks for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    for name in registry.names():
        registry.load(name)
    assert str(tmp_path) not in sys.path
    (tmp_path / "model_beside_the_data.py").write_text("from aecli.models.ae import AE as Mine")
    assert registry.load("model_beside_the_data:Mine").__name__ == "AE"
    del sys.modules["model_beside_the_data"]


@pytest.fixture
def saved(tmp_path):
    """A small AE's checkpoint: its path, and a function that writes it with some tensors or words changed."""
    path = tmp_path / "m.safetensors"
    model = build("ae", width=1)
    document = {"model": "ae", "options": {"width": 1}, "image_size": 64, "fit": "squash"}

    def write(tensors=None, **words):
        checkpoints.save(path, {**model.state_dict(), **(tensors or {})}, {**document, **words})

    write()
    return path, write


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("encoder.0.weight", lambda value: value * float("nan"), "not finite"),
        ("encoder.0.weight", lambda value: value.double() + 1e300, "not finite"),  # in the model's own precision
        ("encoder.1.running_var", lambda value: value - 2, r"encoder\.1\.running_var holds variances below 0"),
        ("encoder.0.weight", lambda value: value.to(torch.int32), "is of type torch.int32"),
        ("encoder.1.num_batches_tracked", lambda value: value.float(), "is of type torch.float32"),
    ],
)
def test_weights_that_are_no_numbers_for_the_model_are_told(saved, key, change, message):
    path, write = saved
    write({key: change(build("ae", width=1).state_dict()[key])})
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load_model(path)


def test_a_checkpoint_of_another_model_than_the_one_named_is_told(saved):
    path, _ = saved
    assert checkpoints.load_model(path, named="ae")[1]["model"] == "ae"
    with pytest.raises(CheckpointError, match="holds a model 'ae', not vae"):
        checkpoints.load_model(path, named="vae")
    with pytest.raises(CheckpointError, match="holds a model 'ae', not own:Model"):
        checkpoints.load_model(path, named="own:Model")


def test_weights_are_not_read_before_they_are_found_to_fit(saved):
    """A file may be as large as it likes: what doesn't fit costs nothing."""
    path, write = saved
    write(options={"width": 2})
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for key, entry in header.items():
            if key != "__metadata__":
                entry.update(shape=[0], data_offsets=[0, 0])
        header["vast"] = {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}
        raw = json.dumps(header).encode()
        file.seek(0)
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + 2**40)  # takes no room on the disk
    with pytest.raises(CheckpointError, match=r"does not fit model 'ae': encoder\.0\.weight is 0 in the file"):
        checkpoints.load_model(path)


@pytest.mark.parametrize("words", [
    {"model": "\x1b[2J\n"}, {"model": 10**6 * "x"}, {"fit": [0] * 10**5}, {"image_size": "\r"},
    {"options": {"\x1b[2J\n": 1}}, {"options": {"width": 10**6 * "x"}},
], ids=lambda words: next(iter(words)))  # fmt: skip
def test_words_of_a_checkpoint_are_told_short_and_printable(saved, words):
    path, write = saved
    write(**words)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_model(path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def test_the_largest_options_cost_next_to_nothing_before_they_are_found_not_to_fit(saved):
    path, write = saved
    write(model="vae", options={"width": 4096, "latent_dim": 65536})
    with pytest.raises(CheckpointError, match="does not fit model 'vae'"):
        checkpoints.load_model(path)
    write(options={"width": 1, "latent_dim": 10**9})
    with pytest.raises(CheckpointError, match="can't be built: --latent-dim 1000000000"):
        checkpoints.load_model(path)


def test_plug_ins_come_in_by_entry_point(monkeypatch):
    from importlib.metadata import EntryPoint

    point = EntryPoint("mine", "aecli.models.ae:AE", registry.ENTRY_POINT_GROUP)
    usurper = EntryPoint("vae", "aecli.models.ae:AE", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point, usurper])
    assert registry.names() == ["ae", "vae", "prior", "mine"]
    assert registry.load("mine").__name__ == "AE"
    assert registry.load("vae").__name__ == "VAE"


def test_names_that_are_no_autoencoders_are_known_without_importing_them():
    assert set(registry.names()) - set(registry.PRIORS) == set(AUTOENCODERS)
