"""What the networks of the field are made of: norms, activations, and the padding of small images."""

from abc import abstractmethod
from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.networks.base import Network
from mim4dd_pl.networks.batchnorm import BatchNorm

Norm = Literal["instance", "group", "batch", "layer", "none"]
Activation = Literal["relu", "leaky_relu", "sigmoid"]

NORMS: dict[Norm, Callable[[int], nn.Module]] = {
    # Instance norm as group norm with one channel a group: affine, without running statistics, twice differentiable.
    "instance": lambda channels: nn.GroupNorm(channels, channels),
    "group": lambda channels: nn.GroupNorm(4, channels),
    "batch": BatchNorm,
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "none": lambda channels: nn.Identity(),
}
ACTIVATIONS: dict[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(0.01),
    "sigmoid": nn.Sigmoid,
}


class Blocks(Network):
    """``blocks`` one after another, each with its output as a layer, and ``classifier`` on the features of the last."""

    blocks: nn.ModuleList
    classifier: nn.Linear

    @abstractmethod
    def __init__(self) -> None:
        super().__init__()

    def features(self, last: Tensor) -> Tensor:
        """What the classifier sees of the last map: all of it, by default."""
        return last.flatten(1)

    def layers(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for block in self.blocks:
            images = block(images)
            maps.append(images)
        return tuple(maps)

    def layers_and_logits(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.layers(images)
        return (*maps, self.classifier(self.features(maps[-1])))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers_and_logits(images)[-1]


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
