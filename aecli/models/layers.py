"""The report's building blocks and initialisation."""

from torch import nn


def down_block(channels_in: int, channels_out: int) -> list[nn.Module]:
    """Halve both sides: Conv2d k4 s2 p1, BatchNorm2d, Mish."""
    return [nn.Conv2d(channels_in, channels_out, 4, 2, 1), nn.BatchNorm2d(channels_out), nn.Mish()]


def up_block(channels_in: int, channels_out: int) -> list[nn.Module]:
    """Double both sides: ConvTranspose2d k4 s2 p1, BatchNorm2d, Mish."""
    return [nn.ConvTranspose2d(channels_in, channels_out, 4, 2, 1), nn.BatchNorm2d(channels_out), nn.Mish()]


def build_encoder(width: int, channels_out: int) -> nn.Sequential:
    """Five blocks, 3 → width → 2·width → 4·width → 8·width → channels_out; the sides shrink 32 fold."""
    channels = [3, width, 2 * width, 4 * width, 8 * width, channels_out]
    return nn.Sequential(*[layer for pair in zip(channels, channels[1:], strict=False) for layer in down_block(*pair)])


def build_decoder(width: int, channels_in: int) -> nn.Sequential:
    """Five blocks, channels_in → 16·width → 8·width → 4·width → 2·width → width, then Conv2d to RGB and Tanh."""
    channels = [channels_in, 16 * width, 8 * width, 4 * width, 2 * width, width]
    blocks = [layer for pair in zip(channels, channels[1:], strict=False) for layer in up_block(*pair)]
    return nn.Sequential(*blocks, nn.Conv2d(width, 3, 3, 1, 1), nn.Tanh())


def initialise(module: nn.Module) -> None:
    """Kaiming normal with nonlinearity 'linear' and zero bias for convolutions; ones and zeros for batch norm."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)
            nn.init.zeros_(layer.bias)
