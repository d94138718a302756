"""What the networks of the field are made of: norms, activations, and the padding of small images."""

from collections.abc import Callable, Iterable
from typing import Literal

from torch import Tensor, nn

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.networks.batchnorm import BatchNorm

Norm = Literal["instance", "group", "batch", "layer", "none"]
Activation = Literal["relu", "leaky_relu", "sigmoid"]

_NORMS: dict[Norm, Callable[[int], nn.Module]] = {
    # Instance norm as group norm with one channel a group: affine, without running statistics, twice differentiable.
    "instance": lambda channels: nn.GroupNorm(channels, channels),
    "group": lambda channels: nn.GroupNorm(4, channels),
    "batch": BatchNorm,
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "none": lambda channels: nn.Identity(),
}
_ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "sigmoid": nn.Sigmoid,
}


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """The normalisation of maps of so many channels."""
    return _NORMS[norm](channels)


def activation_layer(activation: Activation) -> nn.Module:
    """The activation, applied to each number."""
    return _ACTIVATIONS[activation]()


def check_width(norm: Norm, width: int) -> None:
    """Refuse widths without channels, or that do not fall into the four groups of group norm."""
    check_positive(width=width)
    if norm == "group" and width % 4:
        raise ValueError(f"width must be a multiple of 4 for norm group, got {width}.")


def check_size(network: str, image_shape: ImageShape, least: int) -> None:
    """Refuse images with a side below ``least`` pixels."""
    if min(image_shape[1:]) < least:
        height, width = image_shape[1:]
        raise ValueError(
            f"{network} needs images of at least {least}x{least}, got {height}x{width}: take ConvNet or "
            "MLP, or larger images."
        )


def more_padding(image_shape: ImageShape) -> int:
    """What the first convolution adds to its padding: the field's code makes 28x28 images 32x32 there."""
    return 2 if image_shape[1:] == (28, 28) else 0


def outputs(blocks: Iterable[nn.Module], images: Tensor) -> tuple[Tensor, ...]:
    """The output of each of ``blocks``, applied one after another."""
    maps = []
    for block in blocks:
        images = block(images)
        maps.append(images)
    return tuple(maps)
