"""Prints the layers of a model as a Markdown table: kind, output shape, parameters.

python examples/architecture.py vae [IMAGE_SIZE] [KEY=VALUE ...]
"""

import sys

import torch
from torch import nn

from aecli.models import registry


def layers(name, image_size=256, **options):
    """Return rows of (name, kind, output shape, parameters) in execution order, computed on the meta device."""
    rows = []
    with torch.device("meta"):
        model = registry.build(name, registry.resolve_options(name, options)).eval()
        for path, layer in model.named_modules():
            if not list(layer.children()):
                layer.register_forward_hook(lambda layer, _, output, path=path: rows.append(row(path, layer, output)))
        model(torch.empty(1, 3, image_size, image_size))
    return rows


def row(path, layer, output):
    """Return the table's row of one layer."""
    parameters = sum(parameter.numel() for parameter in layer.parameters())
    return path, kind(layer), "×".join(map(str, output.shape[1:])), parameters


def kind(layer):
    """Return the layer's class and, for a convolution, kernel, stride and padding."""
    name = type(layer).__name__
    if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return f"{name} k{layer.kernel_size[0]} s{layer.stride[0]} p{layer.padding[0]}"
    return name


def markdown(rows):
    """Return the rows as a table with the total."""
    lines = [f"| `{path}` | {what} | {shape} | {parameters:,} |" for path, what, shape, parameters in rows]
    total = sum(row[3] for row in rows)
    return "\n".join(
        ["| layer | kind | output | parameters |", "|---|---|---|---|", *lines, f"| | | | **{total:,}** |"]
    )


if __name__ == "__main__":
    given = [text for text in sys.argv[2:] if "=" not in text]
    chosen = dict(text.split("=", 1) for text in sys.argv[2:] if "=" in text)
    print(markdown(layers(sys.argv[1], int(given[0]) if given else 256, **chosen)))
