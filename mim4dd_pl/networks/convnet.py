"""ConvNetD{depth}, the standard network of the field (Gidaris & Komodakis 2018; Zhao et al. 2021)."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from mim4dd_pl.basics.errors import check_positive
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.networks.parts import ACTIVATIONS, NORMS, Activation, Blocks, Norm, check_width, more_padding

_POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "avg": lambda: nn.AvgPool2d(2),
    "max": lambda: nn.MaxPool2d(2),
    "none": nn.Identity,
}


class ConvNet(Blocks):
    """``depth`` blocks of 3x3 convolution, norm, activation and 2x2 pooling, then one linear layer.

    The default on 32x32 RGB images with 10 classes is ConvNetD3-128 with 320,010 parameters.

    Args:
        image_shape: (channels, height, width) of one image.
        num_classes: Number of logits C.
        depth: Number of blocks; each halves the side when it pools. By default it follows the images, so that the last
            map is about 4x4: 1 block at 8 pixels, 2 at 16, 3 at 28 and 32, 4 at 64, 5 at 128.
        width: Channels of every block; a multiple of 4 for ``norm="group"``.
        norm: Normalisation after each convolution.
        pooling: Pooling at the end of each block.
        activation: After each norm.

    Raises:
        ValueError: If the image is too small for ``depth`` poolings, or a setting is out of range.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        depth: int | None = None,
        width: int = 128,
        norm: Norm = "instance",
        pooling: Literal["avg", "max", "none"] = "avg",
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        more = more_padding(image_shape)
        channels, height, width_in = image_shape[0], image_shape[1] + 2 * more, image_shape[2] + 2 * more
        if depth is None:
            depth = max(1, min(height, width_in).bit_length() - 3)
        check_positive(depth=depth)
        check_width(norm, width)
        self.depth, self.width, self.norm, self.pooling, self.activation = depth, width, norm, pooling, activation
        blocks = []
        for k in range(depth):
            blocks.append(
                nn.Sequential(
                    nn.Conv2d(channels, width, kernel_size=3, padding=1 + more if k == 0 else 1),
                    NORMS[norm](width),
                    ACTIVATIONS[activation](),
                    _POOLINGS[pooling](),
                )
            )
            channels = width
            if pooling != "none":
                height, width_in = height // 2, width_in // 2
        if min(height, width_in) < 1:
            raise ValueError(
                f"depth {depth} halves images of {image_shape[1]}x{image_shape[2]} to nothing: lower the depth."
            )
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.Linear(width * height * width_in, num_classes)
