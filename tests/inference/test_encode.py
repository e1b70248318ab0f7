"""`aecli encode`: each layout read as its trainer reads it, statistics, resuming, and what is refused."""

import json
import os
import signal
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

import aecli
from aecli.configs import EncodeConfig
from aecli.data.decoding.decode import fit
from aecli.data.image_ref import ImageRef
from aecli.errors import DataError, ModelError, OutputError
from aecli.inference.latents.encode import encode
from aecli.inference.latents.labels import label_images
from aecli.inference.latents.statistics import CodeStatistics, Moments, add_moments
from aecli.progress import Notice
from aecli.storage.locks import Lock
from tests.support.images import encoded, picture, save_image
from tests.support.latents import CLASSES, SIZE, EDM2Reader, LightningDiTReader, write_classes, write_model
from tests.support.processes import begin, end
from tests.support.ranks import run_ranks
from tests.support.shards import write_tar
from tests.support.trained import fails, invoke, ok_json

NAMES = [f"{name}/{index}.png" for name in CLASSES for index in range(4)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Photos of three classes, and models: with a posterior, without one, and discrete."""
    place = tmp_path_factory.mktemp("encode")
    write_classes(place / "photos")
    write_model(place / "vae.safetensors", "vae")
    write_model(place / "ae.safetensors", "ae")
    write_model(place / "fsq.safetensors", "resnet", bottleneck="fsq", latent_dim=8, levels=[8, 5, 5, 5])
    return place


@pytest.fixture(scope="module")
def posterior(place):
    """Mean and log variance of each photo by the model itself, as it is and mirrored."""
    module = aecli.load(place / "vae.safetensors").module
    found = {}
    for name in NAMES:
        pixels = fit(np.array(Image.open(place / "photos" / name)), SIZE, "squash")
        batch = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            plain, flipped = (module.posterior(each) for each in (batch, batch.flip(-1)))
        found[name] = (plain.mean[0].numpy(), plain.log_variance[0].numpy(), flipped.mean[0].numpy())
    return found


def run(place, out, *, model="vae", data="photos", listen=lambda report: None, **options):
    config = EncodeConfig(str(place / f"{model}.safetensors"), str(place / data), out=out, device="cpu", **options)
    return encode(config, listen)


def contents(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


# Layouts, as they are read


def test_lightningdit_reads_its_layout(place, tmp_path, posterior):
    result = run(place, tmp_path / "out", format="lightningdit", shard_size=5)
    plain, flipped = (LightningDiTReader(tmp_path / "out", choose) for choose in (1.0, 0.0))
    assert len(plain) == len(NAMES) and len(plain.files) == 3 and result.index.flip
    for index, name in enumerate(NAMES):
        mean, _, mirrored = posterior[name]
        feature, label = plain[index]
        assert label == index // 4 and label.dtype == torch.int64
        np.testing.assert_allclose(feature * plain.std[0] + plain.mean[0], mean, atol=1e-5)
        np.testing.assert_allclose(flipped[index][0] * plain.std[0] + plain.mean[0], mirrored, atol=1e-5)
    features = torch.stack([plain[index][0] for index in range(len(plain))])
    assert plain.mean.shape == plain.std.shape == (1, 64, 1, 1)
    assert features.mean((0, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(features.var((0, 2, 3), correction=0), torch.ones(64), atol=1e-3, rtol=0)


def test_edm2_reads_its_layout(place, tmp_path, posterior):
    run(place, tmp_path / "out", format="edm2", flip=True, shard_size=5)
    reader = EDM2Reader(tmp_path / "out")
    assert len(reader) == 2 * len(NAMES) and reader.names[0] == "00000/img-mean-std-00000000.npy"
    assert reader.labels.tolist() == 2 * [number for number in range(3) for _ in range(4)]
    for index, name in enumerate(NAMES):
        mean, log_variance, mirrored = posterior[name]
        np.testing.assert_allclose(reader[index][0], mean, atol=1e-5)
        np.testing.assert_allclose(reader[index][1], np.exp(0.5 * log_variance), rtol=1e-4)
        np.testing.assert_allclose(reader[index + len(NAMES)][0], mirrored, atol=1e-5)


def test_edm2_of_a_model_without_posterior_and_of_images_without_classes(place, tmp_path):
    said = []
    run(place, tmp_path / "out", model="ae", data="photos/cats", format="edm2", listen=said.append)
    reader = EDM2Reader(tmp_path / "out")
    assert len(reader) == 4 and reader.labels is None
    assert not reader[0][1].any() and reader[0][0].any()
    assert any("no posterior" in each.text for each in said if isinstance(each, Notice))


def test_npy_is_scaled_to_unit_variance_or_as_asked_for(place, tmp_path, posterior):
    result = run(place, tmp_path / "out", format="npy", flip=True)
    factor = result.index.latent_scaling.factor[0]
    found = {name: np.load(tmp_path / "out" / name.replace(".png", ".npy")) for name in NAMES}
    assert np.std(list(found.values())) == pytest.approx(1, abs=1e-4)
    for name, values in found.items():
        mean, _, mirrored = posterior[name]
        np.testing.assert_allclose(values / factor, mean, atol=1e-5)
        flipped = np.load(tmp_path / "out" / name.replace(".png", ".flip.npy"))
        np.testing.assert_allclose(flipped / factor, mirrored, atol=1e-5)
    run(place, tmp_path / "asked", format="npy", scaling_factor=0.5)
    np.testing.assert_allclose(np.load(tmp_path / "asked/cats/0.npy"), 0.5 * posterior["cats/0.png"][0], atol=1e-5)


def test_shards_with_names_labels_and_statistics(place, tmp_path, posterior):
    result = run(place, tmp_path / "out", shard_size=5, dtype="fp16")
    found, names = [], []
    for number, count in enumerate((5, 5, 2)):
        file = tmp_path / f"out/latents-{number:05d}.safetensors"
        tensors = load_file(file)
        assert set(tensors) == {"latents", "labels"} and tensors["labels"].dtype == np.int64
        assert tensors["latents"].shape == (count, 64, 1, 1) and tensors["latents"].dtype == np.float16
        found.append(tensors)
        with safe_open(file, "np") as opened:
            names += json.loads(opened.metadata()["aecli"])["names"]
    assert names == NAMES
    means = np.stack([posterior[name][0] for name in NAMES])
    np.testing.assert_allclose(np.concatenate([each["latents"] for each in found]), means, atol=1e-3)
    assert np.concatenate([each["labels"] for each in found]).tolist() == [n for n in range(3) for _ in range(4)]
    statistics = json.loads((tmp_path / "out/statistics.json").read_text())
    np.testing.assert_allclose(statistics["mean"], means.mean((0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(statistics["std"], means.std((0, 2, 3)), rtol=1e-3)
    assert statistics["latent_scaling"]["factor"] == pytest.approx(1 / means.std(), rel=1e-3)
    assert result.index.classes == list(CLASSES) and result.index.latent_scaling is None


def test_discrete_latents_come_with_their_codes(place, tmp_path):
    result = run(place, tmp_path / "out", model="fsq", flip=True)
    tensors = load_file(tmp_path / "out/latents-00000.safetensors")
    module = aecli.load(place / "fsq.safetensors").module
    for suffix in ("", "_flip"):
        codes = torch.from_numpy(tensors[f"codes{suffix}"]).long()
        assert tensors[f"codes{suffix}"].dtype == np.int32 and codes.shape == (len(NAMES), 2, 4, 4)
        np.testing.assert_allclose(module.bottleneck.latents(codes), tensors[f"latents{suffix}"], atol=1e-6)
    books = np.moveaxis(tensors["codes"], 1, 0).reshape(2, -1)
    assert result.statistics.codes.usage == np.mean([len(set(book)) for book in books.tolist()]) / 1000
    assert set(load_file(tmp_path / "out/latents-00000.safetensors")) - {"latents", "codes", "labels"} == {
        "latents_flip", "codes_flip",
    }  # fmt: skip


# Statistics and labels


def test_moments_of_parts_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(3, 2, (50, 4, 3, 3)).astype(np.float32)
    total = add_moments([None, *(Moments.of(part) for part in np.split(values, [1, 7, 30]))])
    np.testing.assert_allclose(total.mean, values.mean((0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(total.std, values.std((0, 2, 3)), rtol=1e-6)
    assert total.overall_std == pytest.approx(values.std(), rel=1e-6)


def test_perplexity_counts_codes_that_are_used_evenly():
    found = CodeStatistics.of(np.array([[5, 5, 0, 0], [2, 2, 2, 2]]))
    assert (found.usage, found.perplexity) == (0.75, pytest.approx(3))


def refs(*names):
    return [ImageRef(name, name, "", bytes) for name in names]


def test_classes_are_the_first_folders_below_the_common_one():
    found = label_images(refs("set/b/x/1.png", "set/a/2.png", "set/b/3.png"), "folders")
    assert (found.classes, found.numbers.tolist()) == (["a", "b"], [1, 0, 1])
    assert label_images(refs("a/1.png", "a/2.png"), "folders") is None
    assert label_images(refs("a/1.png", "2.png"), "none") is None
    with pytest.raises(DataError, match="--labels none"):
        label_images(refs("a/1.png", "2.png"), "folders")


# Whoever works on it, and however often it is begun


def test_batches_and_shards_change_nothing_beyond_rounding(place, tmp_path):
    run(place, tmp_path / "a", format="npy", scaling_factor=2.0)
    run(place, tmp_path / "b", format="npy", scaling_factor=2.0, batch_size=1, workers=3, shard_size=7)
    for name in NAMES:
        a, b = (np.load(tmp_path / each / name.replace(".png", ".npy")) for each in "ab")
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("form", ["lightningdit", pytest.param("npy", marks=pytest.mark.slow)])
def test_processes_write_the_files_of_one(place, tmp_path, form):
    run(place, tmp_path / "alone", format=form, batch_size=2, shard_size=5)
    command = ["encode", "--model", str(place / "vae.safetensors"), "--data", str(place / "photos"), "--out", "shared",
               "--format", form, "--batch-size", "2", "--shard-size", "5"]  # fmt: skip
    statuses, printed, said = run_ranks(tmp_path, command, 2)
    assert statuses == [0, 0], said
    assert printed.count("wrote latents") == 1
    shared = contents(tmp_path / "shared")
    assert shared == contents(tmp_path / "alone") and not any(".aecli" in name for name in shared)


def _die_at(owner, method, count):
    """Have the process killed as it enters `method` for the time of that number."""
    from pkgutil import resolve_name

    where = resolve_name(owner)
    original, calls = getattr(where, method), []

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(where, method, dying)


FOLDER = "aecli.inference.latents.folder:LatentFolder"


@pytest.mark.parametrize(
    ("form", "owner", "method", "count", "parts"),
    [
        ("safetensors", FOLDER, "write_record", 2, 1),
        ("lightningdit", "aecli.inference.latents.encode_job:EncodeJob", "run", 5, 1),
        ("npy", FOLDER, "complete", 1, 3),
        ("edm2", "aecli.inference.latents.folder", "remove_folder", 1, None),
    ],
    ids=["before a part is recorded", "in a part", "before the end", "at the end"],
)
def test_after_a_kill_the_same_command_goes_on(place, tmp_path, form, owner, method, count, parts):
    command = ["encode", "--model", str(place / "vae.safetensors"), "--data", str(place / "photos"), "--format", form,
               "--batch-size", "2", "--shard-size", "5", "--workers", "1"]  # fmt: skip
    run(place, tmp_path / "whole", format=form, batch_size=2, shard_size=5, workers=1)
    assert end(begin(tmp_path, [*command, "--out", "out"], partial(_die_at, owner, method, count))) == -signal.SIGKILL
    (tmp_path / "stderr.txt").unlink(missing_ok=True)
    assert end(begin(tmp_path, [*command, "--out", "out"])) == 0
    said = (tmp_path / "stderr.txt").read_text()
    assert ("is complete" if parts is None else f"going on after {parts} of 3 parts") in said
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert not (tmp_path / "out/unfinished").exists()


def test_what_is_complete_is_not_encoded_again(place, tmp_path, monkeypatch):
    first = run(place, tmp_path / "out")
    monkeypatch.setattr("aecli.inference.latents.encode_job.EncodeJob.run", None)
    assert run(place, tmp_path / "out") == first


# What is refused


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "ae"}, "other weights"), ({"format": "npy"}, "--format safetensors"),
        ({"flip": True}, "without --flip"),
        ({"data": "photos/cats"}, "other images"), ({"image_size": 64}, "--image-size 32"),
        ({"dtype": "fp16"}, "--dtype fp32"), ({"labels": "none"}, "--labels folders"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_folder_of_something_else_is_refused(place, tmp_path, change, said):
    run(place, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(OutputError, match=said):
        run(place, tmp_path / "out", **change)
    assert contents(tmp_path / "out") == before


def test_a_folder_that_another_process_writes_to_is_refused(place, tmp_path):
    (tmp_path / "out").mkdir()
    lock = Lock(tmp_path / "out/.aecli-encode.lock")
    assert lock.take()
    with pytest.raises(OutputError, match="is writing there"):
        run(place, tmp_path / "out")
    lock.close()
    assert run(place, tmp_path / "out").index.written == len(NAMES)


def test_files_of_others_are_left_alone(place, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="already holds"):
        run(place, tmp_path)
    assert contents(tmp_path) == {"mine.txt": b"mine"}


def test_a_damaged_index_is_said_to_be_damaged(place, tmp_path):
    run(place, tmp_path / "out")
    index = json.loads((tmp_path / "out/index.json").read_text())
    for changed in ('{"schema": 1', json.dumps({**index, "flip": "yes"}), json.dumps({**index, "schema": 99})):
        (tmp_path / "out/index.json").write_text(changed)
        with pytest.raises(DataError, match=r"index\.json"):
            run(place, tmp_path / "out")


def test_numbers_beyond_fp16_are_refused(place, tmp_path):
    with pytest.raises(ModelError, match="--dtype fp32"):
        run(place, tmp_path / "out", format="npy", scaling_factor=1e8, dtype="fp16")


def test_images_that_differ_in_the_suffix_have_no_two_arrays(place, tmp_path):
    for name in ("a.png", "a.jpg"):
        save_image(tmp_path / "twins" / name, picture())
    with pytest.raises(DataError, match="suffix"):
        run(place, tmp_path / "out", data=str(tmp_path / "twins"), format="npy")
    assert run(place, tmp_path / "out", data=str(tmp_path / "twins")).index.written == 2


# Sources


def test_unreadable_images_are_named_and_left_out(place, tmp_path):
    write_classes(tmp_path / "photos", 2)
    (tmp_path / "photos/dogs/0.png").write_bytes(b"no image")
    command = ["encode", "--model", place / "vae.safetensors", "--data", tmp_path / "photos", "--out", tmp_path / "out"]
    for _ in range(2):
        result = invoke(*command, "--format", "edm2")
        assert result.exit_code == 1 and "dogs/0.png" in result.stderr and "of 5 images" in result.stdout
    reader = EDM2Reader(tmp_path / "out")
    assert len(reader) == 5 and reader.labels.tolist() == [0, 0, 1, 2, 2]
    for path in (tmp_path / "photos").rglob("*.png"):
        path.write_bytes(b"no image")
    assert "none of the 6 images" in fails(1, *command[:-1], tmp_path / "none")


def test_a_tar_has_classes_too(place, tmp_path):
    members = {f"{name}/{index}.png": encoded(picture(40, 48, index)) for name in "ab" for index in range(2)}
    result = run(place, tmp_path / "out", data=str(write_tar(tmp_path / "set.tar", members)))
    assert (result.index.classes, result.index.written) == (["a", "b"], 4)


def test_a_model_of_whole_pictures_encodes_their_middle(place, tmp_path):
    write_model(tmp_path / "whole.safetensors", "ae", fit="random-crop")
    said = []
    config = EncodeConfig(str(tmp_path / "whole.safetensors"), str(place / "photos"), out=tmp_path / "out")
    result = encode(config, said.append)
    assert result.index.fit == "crop" and any("--fit crop" in each.text for each in said if isinstance(each, Notice))


def test_a_run_encodes_its_own_images(trained):
    found = ok_json("encode", "--model", "vae", "--labels", "none")
    assert (found["out"], found["written"], found["classes"]) == ("latents/vae", 12, None)
    assert ok_json("encode", "--model", "vae", "--labels", "none", "--split", "val", "--out", "v")["written"] == 3


def test_from_python(place, tmp_path):
    photos = np.stack([picture(40, 48, seed) for seed in range(3)])
    result = aecli.encode_folder(place / "vae.safetensors", photos, tmp_path / "out", format="npy", scaling_factor=1.0)
    expected = aecli.load(place / "vae.safetensors").encode(photos)
    files = sorted((tmp_path / "out").glob("*.npy"))
    np.testing.assert_allclose(np.stack([np.load(file) for file in files]), expected, atol=1e-5)
    assert aecli.decode_folder(place / "vae.safetensors", tmp_path / "out", tmp_path / "back").written == 3
    assert result.index.written == 3
