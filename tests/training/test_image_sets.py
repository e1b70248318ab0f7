"""The images of a run, wherever they are: in a pack, decoded on the fly, on the device."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aecli.configs import TrainConfig
from aecli.errors import DataError
from aecli.progress import Notice
from aecli.training import loop, setup
from aecli.training.events import Finished
from aecli.training.inputs import image_sets as images_module
from aecli.training.inputs.image_sets import ImageSet, bring_to_device, gather_images, list_sources, upload
from tests.support.data import finish

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def config(tmp_path, image_folder):
    folder = image_folder(*(f"{seed:03d}.png" for seed in range(110)), height=32, width=32)
    return TrainConfig(
        model="ae", data=str(folder), val_fraction=0.2, epochs=2, image_size=32, batch_size=16, lr=1e-3, flip=True,
        options={"width": 4}, device="cpu", precision="fp32", runs=tmp_path / "runs", cache=str(tmp_path / "cache"),
    )  # fmt: skip


def break_images(config, names):
    for name in names:
        with open(f"{config.data.source}/{name}", "r+b") as file:
            file.truncate(60)


def gathered(config):
    return finish(gather_images(config, list_sources(config), lambda: False))[0]


def weights(config):
    return load_file(config.run.runs / "ae" / "last.safetensors")


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_set_decoded_on_the_fly_trains_to_the_same_weights(config, tmp_path, monkeypatch):
    list(loop.train(config))
    monkeypatch.setenv("AECLI_CACHE_GB", "0")
    other = config.replace(runs=tmp_path / "on the fly", workers=3, cache=str(tmp_path / "none"))
    reports = list(loop.train(other))
    assert not (tmp_path / "none").exists()
    assert any("decoded again in every epoch" in each.text for each in reports if isinstance(each, Notice))
    assert_same_weights(weights(config), weights(other))


def test_broken_images_found_on_the_fly_give_one_notice_and_are_replaced_from_their_own_split(config, monkeypatch):
    monkeypatch.setenv("AECLI_CACHE_GB", "0")
    _, whole_val, _ = gathered(config)
    names = sorted(f"{seed:03d}.png" for seed in range(110))
    val_names = [name for name in names if is_held_out(name, 0.2)]
    assert len(whole_val) == len(val_names) > 1
    break_images(config, val_names[:1])
    _, val, record = gathered(config)
    assert np.array_equal(
        val.images[val.rows[0]], whole_val.images[whole_val.rows[1]]
    )  # the next of the validation images
    assert record["data"]["skipped"] is None
    reports = list(loop.train(config))
    found = [each.text for each in reports if isinstance(each, Notice) and "can't be read" in each.text]
    assert len(found) == 1
    assert val_names[0] in found[0]
    assert isinstance(reports[-1], Finished)


def is_held_out(name, fraction):
    """The rule of the split, by hand."""
    import hashlib

    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 < fraction


def test_too_many_broken_images_met_on_the_fly_end_the_run(config, monkeypatch):
    monkeypatch.setenv("AECLI_CACHE_GB", "0")
    break_images(config, [f"{seed:03d}.png" for seed in range(0, 40)])
    with pytest.raises(DataError, match="can't be decoded, more than 1%"):
        list(loop.train(config))


def test_images_kept_on_the_device_train_to_the_same_weights(config, tmp_path, monkeypatch):
    list(loop.train(config))

    def keep(train, val, device):
        whole = upload(train.images, device)
        return replace(train, resident=whole), replace(val, resident=whole)

    monkeypatch.setattr(setup, "bring_to_device", keep)
    other = config.replace(runs=tmp_path / "resident")
    list(loop.train(other))
    assert_same_weights(weights(config), weights(other))


@pytest.mark.parametrize(("free", "fits"), [(10**6, True), (10**4, False)])
def test_images_go_to_a_cuda_device_where_they_take_a_small_part_of_it(monkeypatch, free, fits):
    pixels = np.zeros((4, 3, 32, 32), dtype=np.uint8)  # 12,288 bytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**9))
    monkeypatch.setattr(images_module, "upload", lambda images, device: torch.from_numpy(images))
    one, other = ImageSet(pixels, np.arange(3)), ImageSet(pixels, np.arange(3, 4))
    train, val = bring_to_device(one, other, torch.device("cuda"))
    assert (train.resident is not None) == fits
    assert train.resident is val.resident
    assert bring_to_device(one, other, torch.device("cpu")) == (one, other)


def test_an_upload_is_the_pack_pixel_for_pixel_in_pieces(monkeypatch):
    monkeypatch.setattr(images_module, "_UPLOAD_BYTES", 3 * 8 * 8 * 2)
    pixels = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
    copy = upload(pixels, torch.device("cpu"))
    assert np.array_equal(copy.numpy(), pixels)
    assert copy.is_contiguous(memory_format=torch.channels_last)


def test_the_summary_tells_the_pace(config):
    end = list(loop.train(config))[-1]
    train, _, _ = gathered(config)
    assert end.pace.images_per_s > 0
    assert 0 <= end.pace.data_wait_fraction < 1
    assert end.pace.peak_memory > 2**26
    again = list(loop.train(config))[-1]
    assert again.was_finished and again.pace is None
    document = json.loads((config.run.runs / "ae" / "config.json").read_text())
    assert document["split"]["train"] == len(train)
