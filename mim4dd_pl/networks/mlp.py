"""A multilayer perceptron, one of the networks on which the field tests images (Zhao et al. 2021)."""

import math

from torch import Tensor, nn

from mim4dd_pl.networks.base import Network
from mim4dd_pl.networks.parts import check_width, outputs
from mim4dd_pl.shapes import ImageShape


class MLP(Network):
    """Two dense layers with ReLU over all pixels, then one linear layer.

    Args:
        image_shape: (channels, height, width) of one image.
        num_classes: Number of logits C.
        width: Of both dense layers.

    Raises:
        ValueError: If ``width`` is not positive.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, width: int = 128) -> None:
        super().__init__()
        check_width("none", width)
        self.width = width
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.ReLU(), nn.Unflatten(1, (width, 1, 1)))
            for features in (math.prod(image_shape), width)
        )
        self.classifier = nn.Linear(width, num_classes)

    def extra_repr(self) -> str:
        return f"width={self.width}"

    def layers(self, images: Tensor) -> tuple[Tensor, ...]:
        """The dense layers as maps of 1x1."""
        return outputs(self.blocks, images)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.layers(images)[-1].flatten(1))
        return logits
