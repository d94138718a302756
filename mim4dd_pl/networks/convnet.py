"""ConvNetD{depth}, the standard network of the field (Gidaris & Komodakis 2018; Zhao et al. 2021)."""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from mim4dd_pl.networks.base import Network
from mim4dd_pl.shapes import ImageShape

_NORMS: dict[str, Callable[[int], nn.Module]] = {
    # Instance norm as group norm with one channel a group: affine, without running statistics, twice differentiable.
    "instance": lambda channels: nn.GroupNorm(channels, channels),
    "group": lambda channels: nn.GroupNorm(4, channels),
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "none": lambda channels: nn.Identity(),
}
_POOLINGS: dict[str, Callable[[], nn.Module]] = {
    "avg": lambda: nn.AvgPool2d(2),
    "max": lambda: nn.MaxPool2d(2),
    "none": nn.Identity,
}


class ConvNet(Network):
    """``depth`` blocks of 3x3 convolution, norm, ReLU and 2x2 pooling, then one linear layer.

    The default on 32x32 RGB images with 10 classes is ConvNetD3-128 with 320,010 parameters.

    Args:
        image_shape: (channels, height, width) of one image.
        num_classes: Number of logits C.
        depth: Number of blocks; each halves the side when it pools.
        width: Channels of every block; a multiple of 4 for ``norm="group"``.
        norm: Normalisation after each convolution.
        pooling: Pooling at the end of each block.

    Raises:
        ValueError: If the image is too small for ``depth`` poolings, or a setting is out of range.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        depth: int = 3,
        width: int = 128,
        norm: Literal["instance", "group", "layer", "none"] = "instance",
        pooling: Literal["avg", "max", "none"] = "avg",
    ) -> None:
        super().__init__()
        if depth < 1 or width < 1:
            raise ValueError(f"model.network depth and width must be at least 1, got depth {depth} and width {width}.")
        if norm == "group" and width % 4:
            raise ValueError(f"model.network norm group needs a width that 4 divides, got {width}.")
        self._settings = f"depth={depth}, width={width}, norm={norm}, pooling={pooling}"
        channels, height, width_in = image_shape
        # The field's code pads 28x28 images to 32x32 in the first convolution.
        first_padding = 3 if height == width_in == 28 else 1
        blocks = []
        for k in range(depth):
            padding = first_padding if k == 0 else 1
            blocks.append(
                nn.Sequential(
                    nn.Conv2d(channels, width, kernel_size=3, padding=padding),
                    _NORMS[norm](width),
                    nn.ReLU(),
                    _POOLINGS[pooling](),
                )
            )
            channels = width
            height, width_in = height + 2 * (padding - 1), width_in + 2 * (padding - 1)
            if pooling != "none":
                height, width_in = height // 2, width_in // 2
        if min(height, width_in) < 1:
            raise ValueError(
                f"model.network depth {depth} halves images of {image_shape[1]}x{image_shape[2]} to nothing: lower the "
                "depth."
            )
        self.blocks = nn.ModuleList(blocks)
        self.classifier = nn.Linear(width * height * width_in, num_classes)

    def extra_repr(self) -> str:
        return self._settings

    def layers(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for block in self.blocks:
            images = block(images)
            maps.append(images)
        return tuple(maps)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.layers(images)[-1].flatten(1))
        return logits
