"""VGG11 for small images, as the field uses it to test images on another network (Zhao et al. 2021)."""

from torch import Tensor, nn

from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.networks.parts import NORMS, Blocks, Norm, check_size, check_width, more_padding

_STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))
"""Channels of the convolutions of each stage, in units of the width."""


class VGG11(Blocks):
    """Five stages of one or two 3x3 convolutions with norm and ReLU, each ending in max-pooling; one linear layer.

    At 32x32 the last map is 1x1; larger ones are averaged over the map. Smaller images pass the first stages without
    pooling, so that the last maps are those of 32x32: an instance norm of 1x1 is zero, and of many 2x2 hard to train.

    Source: Simonyan & Zisserman 2015 (arXiv:1409.1556), column A, with a norm.

    Departs from it: one linear layer and no dropout, as everywhere in the field.

    Args:
        image_shape: (channels, height, width) of one image, at least 4x4.
        num_classes: Number of logits C.
        width: Channels of the first stage; the others have 2, 4, 8 and 8 times as many.
        norm: Normalisation after each convolution.

    Raises:
        ValueError: If the image is too small, or ``width`` out of range.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, width: int = 64, norm: Norm = "instance") -> None:
        super().__init__()
        check_size("VGG11", image_shape, 4)
        check_width(norm, width)
        self.width, self.norm = width, norm
        channels, more = image_shape[0], more_padding(image_shape)
        # Halvings that the image allows; the last stages have them.
        poolings = (min(image_shape[1:]) + 2 * more).bit_length() - 1
        stages: list[nn.Module] = []
        for number, factors in enumerate(_STAGES):
            layers: list[nn.Module] = []
            for factor in factors:
                layers.append(nn.Conv2d(channels, factor * width, 3, padding=1 if stages or layers else 1 + more))
                layers += [NORMS[norm](factor * width), nn.ReLU()]
                channels = factor * width
            if number >= len(_STAGES) - poolings:
                layers.append(nn.MaxPool2d(2))
            stages.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(stages)
        self.classifier = nn.Linear(channels, num_classes)

    def features(self, last: Tensor) -> Tensor:
        return last.mean((2, 3))
