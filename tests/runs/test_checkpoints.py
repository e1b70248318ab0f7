"""Checkpoints of models: what is refused, before anything of the weights is read."""

import json

import pytest
import torch
from safetensors.torch import load_file

from aecli.errors import CheckpointError
from aecli.runs import checkpoints
from tests.support.plain_models import build


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


def test_the_same_weights_and_document_are_the_same_file(tmp_path):
    tensors = {"b": torch.arange(3.0), 'ü "\\\n\x1f': torch.ones(2, 2), "a": torch.zeros(1)}
    document = {"names": ['ü "\\\n', "\u2028"], "zero": 0}
    for number in range(16):  # safetensors draws an order each time
        checkpoints.save(tmp_path / f"{number}", tensors, document)
    files = {(tmp_path / f"{number}").read_bytes() for number in range(16)}
    assert len(files) == 1
    assert load_file(tmp_path / "0").keys() == tensors.keys()
    assert checkpoints.read_document(tmp_path / "0") == {"schema": checkpoints.SCHEMA, **document}


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("encoder.0.weight", lambda value: value * float("nan"), "not finite"),
        ("encoder.0.weight", lambda value: value.double() + 1e300, "not finite"),  # in the model's own precision
        ("encoder.1.running_var", lambda value: value - 2, r"encoder\.1\.running_var has negative variances"),
        ("encoder.0.weight", lambda value: value.to(torch.int32), "is torch.int32 in the file"),
        ("encoder.1.num_batches_tracked", lambda value: value.float(), "is torch.float32 in the file"),
    ],
)
def test_invalid_weights_are_refused(saved, key, change, message):
    path, write = saved
    write({key: change(build("ae", width=1).state_dict()[key])})
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load_model(path)


def test_a_checkpoint_of_another_model_than_the_one_named_is_refused(saved):
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
    with pytest.raises(
        CheckpointError, match=r"does not fit model 'ae' in .* weights: encoder\.0\.weight: 0 in the file"
    ):
        checkpoints.load_model(path)


@pytest.mark.parametrize("words", [
    {"model": "\x1b[2J\n"}, {"model": 10**6 * "x"}, {"fit": [0] * 10**5}, {"image_size": "\r"},
    {"options": {"\x1b[2J\n": 1}}, {"options": {"width": 10**6 * "x"}},
], ids=lambda words: next(iter(words)))  # fmt: skip
def test_messages_about_a_checkpoint_are_short_and_printable(saved, words):
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


@pytest.mark.parametrize("bug", [KeyError, TypeError, ValueError])
def test_a_bug_in_a_built_in_model_is_not_reported_as_a_damaged_file(saved, monkeypatch, bug):
    def fail(*_arguments):
        raise bug("planted")

    monkeypatch.setattr("aecli.models.ae.build_encoder", fail)
    with pytest.raises(bug, match="planted"):
        checkpoints.load_model(saved[0])
