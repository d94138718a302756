"""AlexNet for small images, as the field uses it to test images on another network (Zhao et al. 2021)."""

from torch import Tensor, nn

from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.networks.parts import Blocks, check_size, check_width, more_padding


class AlexNet(Blocks):
    """Five convolutions (5x5, 5x5, 3x3, 3x3, 3x3) with ReLU, max-pooling after 1, 2 and 5, then one linear layer.

    Maps that end larger than 4x4, those of images above 32x32, are averaged to 4x4 for the linear layer.

    Source: Krizhevsky et al. 2012; the sizes for 32x32 images are those of Zhao et al. 2021 (arXiv:2006.05929).

    Departs from it: no normalisation of neighbouring channels and no dropout, as everywhere in the field.

    Args:
        image_shape: (channels, height, width) of one image, at least 8x8.
        num_classes: Number of logits C.
        width: Channels of the first convolution, even; the others have 3/2, 2, 3/2 and 3/2 of it.

    Raises:
        ValueError: If the image is too small, or ``width`` out of range.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, width: int = 128) -> None:
        super().__init__()
        check_size("AlexNet", image_shape, 8)
        check_width("none", width)
        if width % 2:
            raise ValueError(f"width must be even, got {width}.")
        self.width = width
        more, half = more_padding(image_shape), 3 * width // 2
        channels = (image_shape[0], width, half, 2 * width, half, half)
        kernels, pooled = (5, 5, 3, 3, 3), (True, True, False, False, True)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels[k], channels[k + 1], kernels[k], padding=kernels[k] // 2 + (more if k == 0 else 0)),
                nn.ReLU(),
                nn.MaxPool2d(2) if pooled[k] else nn.Identity(),
            )
            for k in range(5)
        )
        height, width_out = (min((side + 2 * more) // 8, 4) for side in image_shape[1:])
        self.pool = nn.AdaptiveAvgPool2d((height, width_out))
        self.classifier = nn.Linear(half * height * width_out, num_classes)

    def features(self, last: Tensor) -> Tensor:
        return super().features(self.pool(last))
