import hashlib
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from safetensors.torch import load_file, save_file
from skimage.data import astronaut
from torch import nn

from aecli.errors import WeightsError
from aecli.metrics import network_weights
from aecli.metrics.lpips import LPIPS, StridedConv2d
from aecli.metrics.network_weights import SHIPPED
from aecli.progress import Notice, Progress
from tests.support.vectors import batch


def test_the_shipped_weights_are_those_of_the_readme_and_need_nothing_else(lpips_references, monkeypatch, tmp_path):
    readme = (SHIPPED["alex"].parent / "README.md").read_text(encoding="utf-8")
    stated = re.search(r"SHA-256: `([0-9a-f]{64})`", readme)
    assert stated
    assert stated[1] == hashlib.sha256(SHIPPED["alex"].read_bytes()).hexdigest()
    assert "BSD 3-Clause" in readme
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    network = LPIPS.from_net("alex")
    assert network.weights_sha256 == stated[1]
    photo = batch(astronaut()[:64, :64])
    with torch.no_grad():
        expected = lpips_references[0]["alex"](photo / 127.5 - 1, 1 - photo / 127.5).item()
    assert network(photo, 255 - photo).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_distances_layer_by_layer_are_those_of_all_features(lpips_references, net):
    network = LPIPS.from_net(net, lpips_references[1][net])
    photo = batch(astronaut()[:64, :72])
    features = [network.features(images) for images in (photo, 255 - photo)]
    assert torch.equal(network(photo, 255 - photo), network.distance(*features))


@pytest.mark.parametrize("height, width, stride, padding", [
    (31, 64, 4, 2), (65, 66, 4, 2), (67, 40, 4, 2), (33, 32, 4, 0), (20, 21, 2, 5), (16, 23, 7, 0),
])  # fmt: skip
def test_gradient_of_a_strided_convolution_is_pytorchs(height, width, stride, padding):
    torch.manual_seed(0)
    layer = StridedConv2d(3, 8, 11, stride=stride, padding=padding).double().requires_grad_(False)
    values = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    expected = nn.functional.conv2d(values, layer.weight, layer.bias, layer.stride, layer.padding)
    assert torch.equal(layer(values), expected)
    weights = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad((made * weights).sum(), values)[0] for made in (layer(values), expected))
    torch.testing.assert_close(found, wanted)
    layer.requires_grad_(True)
    assert torch.autograd.grad(layer(values).sum(), layer.weight)[0].abs().sum() > 0


def test_slow_packages_are_not_imported():
    script = "import sys; from aecli.metrics.lpips import LPIPS; LPIPS.from_net('alex'); print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in modules
    assert not {"lpips", "torchvision", "skimage", "scipy"} & set(modules)


class TestWhereWeightsAreFound:
    @pytest.fixture(autouse=True)
    def nowhere(self, monkeypatch, tmp_path):
        """An empty machine whose downloads go to a closed port."""
        monkeypatch.delenv("AECLI_WEIGHTS", raising=False)
        monkeypatch.setenv("no_proxy", "*")
        self.hub = tmp_path / "hub"
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(self.hub))
        monkeypatch.setattr(network_weights, "DOWNLOADS", "http://127.0.0.1:9/models")

    @pytest.fixture
    def served(self, monkeypatch, lpips_references, tmp_path):
        """A server on this machine that has SqueezeNet under a name with its hash; returns what it sends."""
        file = tmp_path / "state.pth"
        torch.save(load_file(lpips_references[1]["squeeze"]) | {"classifier.1.bias": torch.zeros(1000)}, file)
        sent = {"body": file.read_bytes(), "length": file.stat().st_size}
        digest = hashlib.sha256(sent["body"]).hexdigest()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(sent["length"]))
                self.end_headers()
                self.wfile.write(sent["body"])

            def log_message(self, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(network_weights, "DOWNLOADS", f"http://127.0.0.1:{server.server_port}/models")
        monkeypatch.setitem(network_weights.BACKBONES, "squeeze", f"squeezenet1_1-{digest[:8]}.pth")
        yield sent
        server.shutdown()
        thread.join()
        server.server_close()

    def assert_loaded(self, network, file):
        assert torch.equal(network.backbone[0].weight, load_file(file)["features.0.weight"])

    def test_given_file_comes_first_whatever_its_kind(self, lpips_references, tmp_path):
        file = lpips_references[1]["squeeze"]
        self.assert_loaded(LPIPS.from_net("squeeze", file), file)
        torch.save(load_file(file), tmp_path / "mine.pth")
        self.assert_loaded(LPIPS.from_net("squeeze", tmp_path / "mine.pth"), file)

    def test_folder_then_hub_cache(self, lpips_references, tmp_path, monkeypatch):
        file = lpips_references[1]["squeeze"]
        cached = self.hub / "checkpoints" / "squeezenet1_1_features.safetensors"
        cached.parent.mkdir(parents=True)
        cached.write_bytes(file.read_bytes())
        self.assert_loaded(LPIPS.from_net("squeeze"), file)
        other = {name: value + 1 for name, value in load_file(file).items()}
        save_file(other, tmp_path / "squeezenet1_1_features.safetensors")
        monkeypatch.setenv("AECLI_WEIGHTS", str(tmp_path))
        self.assert_loaded(LPIPS.from_net("squeeze"), tmp_path / "squeezenet1_1_features.safetensors")

    def test_download_is_checked_kept_and_reported(self, served, lpips_references):
        heard = []
        self.assert_loaded(LPIPS.from_net("squeeze", listen=heard.append), lpips_references[1]["squeeze"])
        assert isinstance(heard[0], Notice)
        assert isinstance(heard[-1], Progress)
        assert heard[-1].done == heard[-1].total == len(served["body"])
        kept = self.hub / "checkpoints" / network_weights.BACKBONES["squeeze"]
        assert kept.read_bytes() == served["body"]
        served["body"] = b""
        self.assert_loaded(LPIPS.from_net("squeeze"), lpips_references[1]["squeeze"])

    @pytest.mark.parametrize(
        ("damage", "reason"),
        [(lambda body: body[:-1] + b"?", "SHA-256"), (lambda body: body[:5000], "failed")],
    )
    def test_a_damaged_download_is_refused_and_not_kept(self, served, damage, reason):
        served["body"] = damage(served["body"])
        with pytest.raises(WeightsError, match=reason):
            LPIPS.from_net("squeeze")
        assert list((self.hub / "checkpoints").iterdir()) == []

    @pytest.mark.parametrize(
        ("net", "file"), [("vgg", "vgg16-397923af.pth"), ("squeeze", "squeezenet1_1-b8a52dc0.pth")]
    )
    def test_nowhere_to_be_had(self, net, file):
        with pytest.raises(WeightsError) as caught:
            LPIPS.from_net(net)
        message = str(caught.value)
        assert len(message.splitlines()) == 2
        for part in (file, "http://127.0.0.1:9/models", str(self.hub / "checkpoints"), "--lpips-weights"):
            assert part in message

    def test_cached_file_that_belies_its_name(self):
        cached = self.hub / "checkpoints" / "vgg16-397923af.pth"
        cached.parent.mkdir(parents=True)
        cached.write_bytes(b"half a file")
        with pytest.raises(WeightsError, match="(?s)is damaged.*hint: delete it"):
            LPIPS.from_net("vgg")

    def test_files_that_are_no_such_weights(self, lpips_references, tmp_path):
        with pytest.raises(WeightsError, match="--lpips-weights .*none.pth: no such file"):
            LPIPS.from_net("vgg", tmp_path / "none.pth")
        for name in ("noise.pth", "noise.safetensors"):
            (tmp_path / name).write_bytes(b"\x80\x04noise" * 50)
            with pytest.raises(WeightsError, match=name):
                LPIPS.from_net("vgg", tmp_path / name)
        torch.save([torch.zeros(3)], tmp_path / "list.pth")
        with pytest.raises(WeightsError, match="expected a state dict"):
            LPIPS.from_net("vgg", tmp_path / "list.pth")
        # AlexNet's for VGG: names that are missing, and shapes that are others.
        with pytest.raises(WeightsError, match=r"features\.2\.weight is missing.* more"):
            LPIPS.from_net("vgg", SHIPPED["alex"])
        state = load_file(lpips_references[1]["squeeze"])
        save_file(state | {"features.0.weight": torch.zeros(64, 3, 5, 5)}, tmp_path / "misshapen.safetensors")
        with pytest.raises(WeightsError, match=r"features\.0\.weight.*\(64, 3, 5, 5\)"):
            LPIPS.from_net("squeeze", tmp_path / "misshapen.safetensors")

    def test_a_pickle_that_runs_code_is_refused(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "ran"), "w"))

        torch.save({"features.0.weight": Evil()}, tmp_path / "evil.pth")
        with pytest.raises(WeightsError, match="evil.pth can't be read"):
            LPIPS.from_net("vgg", tmp_path / "evil.pth")
        assert not (tmp_path / "ran").exists()
