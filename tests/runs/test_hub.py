"""`hf:ORG/NAME[:SUBFOLDER]` as a MODEL: what is fetched, and what is said where that can't be."""

import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub.utils import filter_repo_objects

from aecli.errors import CheckpointError, ModelError
from aecli.runs.folder import locate
from aecli.runs.initial_weights import absolute
from tests.support.diffusers_models import build, save
from tests.support.hub import serving
from tests.support.processes import begin, end, set_variables
from tests.support.trained import write_images

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder of repositories, and what is fetched from it into a cache of its own."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def fetch(repository, allow_patterns):
        source, target = tmp_path / "hub" / repository, tmp_path / "cache" / repository
        if not source.is_dir():
            raise FileNotFoundError(f"no {repository}\nand a long explanation")
        names = [path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()]
        for name in filter_repo_objects(names, allow_patterns=allow_patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target / name)
            asked.append(name)
        target.mkdir(parents=True, exist_ok=True)
        return str(target)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    return tmp_path / "hub", asked


def found(text):
    told = []
    located = locate(text, Path("runs"), listen=told.append)
    return located, [notice.text for notice in told]


def test_config_and_weights_are_fetched_and_nothing_else(hub):
    folder, asked = hub
    save("SD", folder / "org/small")
    for other in (f"{WEIGHTS}.bin", "model.ckpt", "README.md", "code.py", f"{WEIGHTS}.fp16.safetensors"):
        (folder / "org/small" / other).write_bytes(b"x")
    located, told = found("hf:org/small")
    assert asked == ["config.json", f"{WEIGHTS}.safetensors"] and located.label == "small"
    assert located.checkpoint == folder.parent / f"cache/org/small/{WEIGHTS}.safetensors" and located.run is None
    assert len(told) == 1 and "hf:org/small is taken from" in told[0]


@pytest.mark.parametrize("text", ["hf:org/pipe", "hf:org/pipe:vae"])
def test_the_autoencoder_of_a_pipeline(text, hub):
    folder, asked = hub
    save("SDXL", folder / "org/pipe/vae", max_shard_size="20KB")
    (folder / "org/pipe/unet").mkdir()
    (folder / f"org/pipe/unet/{WEIGHTS}.safetensors").write_bytes(b"large")
    located, _ = found(text)
    assert located.checkpoint.name == f"{WEIGHTS}.safetensors.index.json"
    assert asked[0] == "vae/config.json" and all(name.startswith("vae/") for name in asked)


def test_a_variant_is_fetched_where_there_is_no_other(hub):
    folder, _ = hub
    build("SD").half().save_pretrained(folder / "org/half", variant="fp16")
    assert found("hf:org/half")[0].checkpoint.name == f"{WEIGHTS}.fp16.safetensors"


def test_what_can_not_be_fetched_is_said(hub, monkeypatch):
    folder, asked = hub
    save("SD", folder / "org/old", safe_serialization=False)
    (folder / "org/none").mkdir()
    for text, said in {
        "hf:org/old": f"no {WEIGHTS}.safetensors there, and pickles",
        "hf:org/none": "no config.json in its top folder or vae or vqvae",
        "hf:org/none:sub/folder": "no config.json in sub/folder",
        "hf:org/gone": "can't be fetched: no org/gone\nhint: `hf download org/gone`",
        "hf:gone": "expected hf:ORG/NAME",
        "hf:org/name:../up": "expected hf:ORG/NAME",
        "hf:org/..": "expected hf:ORG/NAME",
    }.items():
        with pytest.raises(CheckpointError) as caught:
            found(text)
        assert said in str(caught.value) and str(caught.value).count("\n") <= 1
    assert asked == ["config.json"]
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"pip install 'aecli\[diffusers\]'"):
        found("hf:org/old")


def test_init_keeps_the_name():
    assert absolute("hf:org/small") == "hf:org/small"


@pytest.mark.slow
def test_huggingface_hub_fetches_it_keeps_it_and_works_without_a_network(tmp_path):
    save("SD", tmp_path / "hub/org/small")
    write_images(tmp_path / "images", ["a"])
    command = ["reconstruct", "--model", "hf:org/small", "--data", "images", "--out", "out", "--overwrite"]

    def run(**environment):
        """In processes of their own: huggingface_hub reads its variables when it is imported."""
        variables = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
        (tmp_path / "stderr.txt").unlink(missing_ok=True)
        status = end(begin(tmp_path, command, partial(set_variables, variables)))
        return status, (tmp_path / "stderr.txt").read_text()

    with serving(tmp_path / "hub") as (endpoint, fetched):
        status, said = run(HF_ENDPOINT=endpoint)
        assert status == 0, said
        assert sorted(fetched) == ["config.json", f"{WEIGHTS}.safetensors"] and "Fetching" not in said
        assert run(HF_ENDPOINT=endpoint)[0] == 0 and len(fetched) == 2
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": endpoint}):  # where nobody listens any more
        assert run(**environment)[0] == 0
        status, said = run(**environment, HF_HOME=str(tmp_path / "empty"))
        assert status == 1 and "hf:org/small can't be fetched" in said
        assert "hf download org/small" in said and "Traceback" not in said
