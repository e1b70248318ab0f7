"""Features of sets against torchvision's AlexNet and torch-fidelity's Inception network."""

import pytest
import torch

from aecli.errors import WeightsError
from aecli.metrics import feature_networks
from aecli.metrics.feature_networks import load_features
from aecli.metrics.lpips import LPIPS
from aecli.progress import ignore

SIDE = 64
CPU = torch.device("cpu")


def test_features_are_alexnets_own():
    from torchvision.models import alexnet as torchvisions

    torch.manual_seed(0)
    images = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)
    ours = load_features("alex", CPU, ignore).compute
    theirs = torchvisions(weights=None).features[:12].eval()
    theirs.load_state_dict(LPIPS.from_net("alex").backbone.state_dict())
    # LPIPS' constants for images in [-1, 1] are ImageNet's mean and deviation, rounded.
    scaled = torch.nn.functional.interpolate(images / 127.5 - 1, (224, 224), mode="bilinear", antialias=True)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    with torch.no_grad():
        by_hand = theirs((scaled - shift[:, None, None]) / scale[:, None, None]).mean(dim=(2, 3))
    torch.testing.assert_close(ours(images), by_hand, rtol=1e-3, atol=1e-4)
    assert ours(images).shape == (3, 256)


def test_inception_features_are_torch_fidelitys(tmp_path, monkeypatch):
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    name = "weights.pth"  # of a name that promises no hash
    monkeypatch.setattr(feature_networks, "INCEPTION_FILE", name)
    monkeypatch.setenv("AECLI_WEIGHTS", str(tmp_path))
    torch.manual_seed(0)
    monkeypatch.setattr(inception, "load_state_dict_from_url", lambda *args, **options: {})
    monkeypatch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
    theirs = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).eval()
    monkeypatch.undo()
    monkeypatch.setattr(feature_networks, "INCEPTION_FILE", name)
    monkeypatch.setenv("AECLI_WEIGHTS", str(tmp_path))
    torch.save(theirs.state_dict(), tmp_path / name)
    ours = load_features("auto", CPU, ignore)
    assert (ours.name, ours.kernel_name, ours.frechet_name) == ("inception", "kid", "fid")
    images = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    assert torch.equal(ours.compute(images), theirs(images)[0])
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="damaged"):
        load_features("inception", CPU, ignore)
