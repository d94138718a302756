"""Two small classifiers: LeNet, and a perceptron without convolutions."""

import math

from torch import nn

from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.networks.parts import Blocks, check_size, check_width, more_padding


class LeNet(Blocks):
    """Two 5x5 convolutions with ReLU and max-pooling, dense layers of 120 and 84, one linear layer.

    Source: LeCun et al. 1998, with ReLU and max-pooling for sigmoid and subsampling, as everywhere in the field.

    Args:
        image_shape: (channels, height, width) of one image, at least 16x16.
        num_classes: Number of logits C.

    Raises:
        ValueError: If the image is too small.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        check_size("LeNet", image_shape, 16)
        more = more_padding(image_shape)
        height, width = (((side + 2 * more - 4) // 2 - 4) // 2 for side in image_shape[1:])
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(image_shape[0], 6, 5, padding=more), nn.ReLU(), nn.MaxPool2d(2)),
                nn.Sequential(nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
                _dense(16 * height * width, 120),
                _dense(120, 84),
            ]
        )
        self.classifier = nn.Linear(84, num_classes)


def _dense(features: int, width: int) -> nn.Module:
    """A dense layer that shows its output as a map of 1x1."""
    return nn.Sequential(nn.Flatten(), nn.Linear(features, width), nn.ReLU(), nn.Unflatten(1, (width, 1, 1)))


class MLP(Blocks):
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
        self.blocks = nn.ModuleList([_dense(math.prod(image_shape), width), _dense(width, width)])
        self.classifier = nn.Linear(width, num_classes)
