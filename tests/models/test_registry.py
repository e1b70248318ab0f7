"""Models by name: built-ins, plug-ins and classes; options checked by name."""

import dataclasses
import re
import sys
from importlib.metadata import EntryPoint

import pytest

from aecli.errors import ConfigError, ModelError
from aecli.models import registry
from aecli.models.base import Autoencoder


def test_unknown_model_names_what_exists():
    with pytest.raises(ModelError, match=r"'vea'\nhint: did you mean vae\? .*ae, vae, .*prior"):
        registry.load("vea")


@pytest.mark.parametrize(
    "target",
    [
        "no.such.module:Thing", "aecli.models.ae:Thing", "pathlib:Path", "json:loads", "os:path", "absent_module:A",
        ":", "a:", ":A", ".x:A", "..:A", "a..b:A", "a b:C",
    ],
)  # fmt: skip
def test_what_names_no_model_is_refused(target):
    with pytest.raises(ModelError, match=re.escape(target)):
        registry.load(target)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"wdith": 3}, r"--option wdith.*\nhint: it has width \(int\), latent_dim \(int\), beta \(float\)"),
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


def test_typed_options_are_converted_and_unknown_defaults_ignored():
    options = registry.resolve_options("ae", {"width": "16", "latent_dim": "none"}, {"beta": 1.0, "latent_dim": 7})
    assert dataclasses.asdict(options) == {"width": 16, "latent_dim": None}


def test_the_working_folder_is_imported_from_only_for_a_class_that_the_user_names(tmp_path, monkeypatch):
    """A file there may be of unknown origin, under the name of something that PyTorch imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    for name in registry.names():
        registry.load(name)
    assert str(tmp_path) not in sys.path
    (tmp_path / "model_beside_the_data.py").write_text("from aecli.models.ae import AE as Mine")
    assert registry.load("model_beside_the_data:Mine").__name__ == "AE"
    del sys.modules["model_beside_the_data"]


def test_plug_ins_are_found_by_entry_point(monkeypatch):
    built_in = registry.names()
    point = EntryPoint("mine", "aecli.models.ae:AE", registry.ENTRY_POINT_GROUP)
    usurper = EntryPoint("vae", "aecli.models.ae:AE", registry.ENTRY_POINT_GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point, usurper])
    assert registry.names() == [*built_in, "mine"]
    assert registry.load("mine").__name__ == "AE"
    assert registry.load("vae").__name__ == "VAE"


def test_names_that_are_no_autoencoders_are_known_without_importing_them():
    others = {name for name in registry.names() if not issubclass(registry.load(name), Autoencoder)}
    assert set(registry.PRIORS) == others
