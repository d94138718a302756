"""ResNet18 for small images, as the field uses it to test images on another network (Zhao et al. 2021)."""

from torch import Tensor, nn
from torch.nn.functional import relu

from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.networks.parts import NORMS, Blocks, Norm, check_size, check_width


class _Residual(nn.Module):
    """relu(x + F(x)) with F two 3x3 convolutions with norms; x by a 1x1 convolution where the shapes differ."""

    def __init__(self, channels_in: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False),
            NORMS[norm](channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            NORMS[norm](channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), NORMS[norm](channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        return relu(self.branch(features) + self.shortcut(features))


class ResNet18(Blocks):
    """A 3x3 convolution without pooling, four stages of two residual blocks, the mean of the map, one linear layer.

    The stages after the first halve the map, as long as it keeps 2x2, which instance norm needs.

    Source: He et al. 2016 (arXiv:1512.03385), with the first layer that is usual for 32x32 images.

    Args:
        image_shape: (channels, height, width) of one image, at least 2x2.
        num_classes: Number of logits C.
        width: Channels of the first stage; the others have 2, 4 and 8 times as many.
        norm: Normalisation after each convolution.

    Raises:
        ValueError: If the image is too small, or ``width`` out of range.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, width: int = 64, norm: Norm = "instance") -> None:
        super().__init__()
        check_size("ResNet18", image_shape, 2)
        check_width(norm, width)
        self.width, self.norm = width, norm
        self.stem = nn.Sequential(
            nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False), NORMS[norm](width), nn.ReLU()
        )
        channels, side = width, min(image_shape[1:])
        stages: list[nn.Module] = []
        for factor in (1, 2, 4, 8):
            stride = 2 if stages and side > 2 else 1
            stages.append(
                nn.Sequential(
                    _Residual(channels, factor * width, stride, norm),
                    _Residual(factor * width, factor * width, 1, norm),
                )
            )
            channels, side = factor * width, -(-side // stride)
        self.blocks = nn.ModuleList(stages)
        self.classifier = nn.Linear(channels, num_classes)

    def layers(self, images: Tensor) -> tuple[Tensor, ...]:
        """One map per stage."""
        return super().layers(self.stem(images))

    def features(self, last: Tensor) -> Tensor:
        return last.mean((2, 3))
