import dataclasses
import sys
from pathlib import Path

import pytest

from aecli.configs import TrainConfig
from aecli.errors import ConfigError
from aecli.models import registry
from aecli.recipes import layering
from aecli.recipes.layering import layer

QUICK = {"epochs": 200, "image_size": 64, "batch_size": 8, "lr": 1e-3}


@pytest.fixture
def toml(tmp_path):
    def write(text, name="mine.toml"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def refused(*words, flags=None, config=None, model="vae"):
    with pytest.raises(ConfigError) as caught:
        layer(model, flags or {}, config)
    message = str(caught.value)
    assert message.count("\n") <= 1
    for word in words:
        assert word in message
    return message


def test_report_is_the_default_and_equals_the_dataclass():
    assert {"prior", "quick", "report"} <= set(layering.names())
    assert layer("vae", {}) == TrainConfig("vae")
    assert layer("vae", {"recipe": "report"}) == TrainConfig("vae")


def test_quick_is_minutes_on_a_laptop():
    config = layer("vae", {"recipe": "quick"})
    assert config == TrainConfig("vae", model_defaults={"width": 16}, **QUICK)


def test_flags_win_over_the_file_and_the_file_over_the_recipe(toml):
    file = toml("recipe = 'quick'\nlr = 5e-4\nepochs = 7\nwidth = 12\n[options]\nbeta = 1e-3\n")
    config = layer("vae", {"epochs": 3, "beta": 0.5}, file)
    how = config.optimization
    assert (how.epochs, how.lr, how.batch_size, config.data.image_size) == (3, 5e-4, 8, 64)
    assert config.model.options == {"width": 12, "beta": 0.5}
    assert config.model.defaults == {"width": 16}
    options = registry.resolve_options("vae", config.model.options, config.model.defaults)
    assert dataclasses.asdict(options) == {"width": 12, "latent_dim": None, "beta": 0.5}


def test_the_flags_recipe_wins_over_the_files(toml):
    assert layer("vae", {"recipe": "report"}, toml("recipe = 'quick'")) == TrainConfig("vae")
    assert layer("vae", {}, toml("recipe = 'quick'")).data.image_size == 64


def test_a_recipes_width_counts_only_where_the_model_has_it():
    config = layer("examples.custom_model:ResidualAE", {"recipe": "quick"})
    options = registry.resolve_options(config.model.name, config.model.options, config.model.defaults)
    assert dataclasses.asdict(options) == {"channels": 32, "latent_dim": 16}
    narrow = layer("ae", {"recipe": "quick"})
    assert registry.resolve_options("ae", narrow.model.options, narrow.model.defaults).width == 16


def test_a_users_width_is_refused_where_the_model_has_none(toml):
    config = layer("examples.custom_model:ResidualAE", {}, toml("width = 8"))
    with pytest.raises(ConfigError, match=r"width.*no such option\nhint: .*channels \(int\)"):
        registry.resolve_options(config.model.name, config.model.options, config.model.defaults)


def test_keys_are_spelled_with_either_dash(toml):
    config = layer("vae", {}, toml("batch-size = 4\nval_fraction = 0.2\nlatent-dim = 9\n[option]\nwidth = 3\n"))
    assert (config.optimization.batch_size, config.data.val_fraction) == (4, 0.2)
    assert config.model.options == {"latent_dim": 9, "width": 3}


def test_paths_are_paths(toml):
    config = layer("vae", {"runs": Path("elsewhere")}, toml("out = 'here'\ndata = 'images'"))
    assert (config.run.out, config.run.runs, config.data.source) == (Path("here"), Path("elsewhere"), "images")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("width = 4\n[options]\nwidth = 5", "width"), ("options = {width = 5}\nwidth = 4", "width"),
        ("batch_size = 4\nbatch-size = 5", "batch_size"),
    ],
)  # fmt: skip
def test_a_key_twice_in_a_file_is_refused_in_either_order_and_spelling(toml, text, key):
    refused("mine.toml", key, "twice", config=toml(text))


@pytest.mark.parametrize("flags", [{"width": 4, "options": {"width": 5}}, {"options": {"width": 5}, "width": 4}])
def test_width_twice_on_the_command_line_is_refused_in_either_order(flags):
    refused("width", "twice", flags=flags)


def test_unknown_keys_are_named_with_those_there_are(toml):
    message = refused("mine.toml", "'epoch'", config=toml("epoch = 3"))
    assert "epochs" in message and "batch_size" in message
    for key in ("model", "model_defaults", "config", "quiet"):
        refused("mine.toml", repr(key), config=toml(f"{key} = 'x'"))


def test_unknown_recipes_are_named(toml):
    refused("--recipe slow", "quick", "report", flags={"recipe": "slow"})
    refused("slow", "quick", "report", config=toml("recipe = 'slow'"))
    for name in ("../recipes/quick", ""):  # no path, and no default
        refused("--recipe", name, flags={"recipe": name})


@pytest.mark.parametrize("text", ["lr = ", "[options", b"\xff\xfe", "lr = 1\nlr = 2"])
def test_invalid_toml_is_refused_with_the_files_name(toml, text):
    refused("mine.toml", "not valid TOML", config=toml(text))


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    refused("absent.toml", "No such file", config=tmp_path / "absent.toml")
    refused(tmp_path.name, "directory", config=tmp_path)


WRONG_TYPES = {
    "epochs": ["'3'", "3.5", "true"], "lr": ["'1e-3'", "true", "inf"], "val_fraction": ["nan"], "seed": ["-1", "1.0"],
    "fit": ["3", "['crop']"], "device": ["0"], "workers": ["0"], "ema": ["'x'"], "recipe": ["3", "[]"],
    "options": ["3"], "out": ["3"], "runs": ["[]"], "data": ["3"], "val_data": ["false"], "flip": ["'no'", "1"],
    "restart": ["'no'"], "deterministic": ["'no'"], "cache": ["true"],
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in WRONG_TYPES.items() for value in values])
def test_values_of_another_type_are_refused_by_name(toml, key, value):
    refused(key.replace("_", "-"), config=toml(f"{key} = {value}"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("width = 4.5", ("width", "int")),
        ("width = true", ("width", "int")),
        ("beta = [1]", ("beta", "float")),
        ("[options]\nwidth = {a = 1}", ("width", "int")),
    ],
)
def test_model_options_of_another_type_are_refused_by_name(toml, text, words):
    config = layer("vae", {}, toml(text))
    with pytest.raises(ConfigError) as caught:
        registry.resolve_options("vae", config.model.options, config.model.defaults)
    assert all(word in str(caught.value) for word in words)


def test_a_file_that_is_no_file_of_options_is_not_read_to_its_end(toml):
    refused("--config /dev/zero", "more than 1048576 bytes", config=Path("/dev/zero"))
    refused("mine.toml", "more than 1048576 bytes", config=toml("#" * 2**20 + "\n"))
    assert layer("vae", {}, toml("#" * (2**20 - 8) + "\nlr = 1")).optimization.lr == 1


@pytest.mark.parametrize("text", ["a = " + "[" * 10**5, "[options]\nwidth = " + "[" * 900 + "]" * 900])
def test_what_is_nested_too_deeply_is_refused(toml, text):
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # Python's own; libraries that other tests import raise it
    try:
        refused("mine.toml", "nested too deeply", config=toml(text))
    finally:
        sys.setrecursionlimit(before)


def test_a_byte_order_mark_is_no_key(toml):
    assert layer("vae", {}, toml("lr = 0.5", "bom.toml")) == layer("vae", {}, toml(b"\xef\xbb\xbflr = 0.5"))


@pytest.mark.parametrize("key", ["data", "val_data", "out", "runs", "cache"])
def test_text_with_a_nul_is_refused_by_name(toml, key):
    refused(f"--{key.replace('_', '-')}", "NUL", config=toml(f'{key} = "a\\u0000b"'))


@pytest.mark.parametrize("text", ["epochs = " + "9" * 5000, "lr = 1e400", 'recipe = ""'])
def test_absurd_values_are_refused(toml, text):
    refused(config=toml(text))
