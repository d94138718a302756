"""Pictures of any size as squares of one: what is refused by its header, and how it is resized."""

from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from mim4dd_pl.basics.errors import DataError


def check_image_size(image_size: int | None) -> None:
    """Refuse sides that no network here can take."""
    if image_size is not None and not 4 <= image_size <= 1024:
        raise ValueError(f"data.source.image_size must lie in 4..1024 pixels, got {image_size}.")


def square(images: Tensor, side: int) -> Tensor:
    """uint8 images (..., c, h, w), resized so that the shorter side fits and cut to the centre square."""
    if min(images.shape[-2:]) != side:
        images = transforms.resize(images, [side], antialias=True)
    cut: Tensor = transforms.center_crop(images, [side, side])
    return cut


_MOST_PIXELS = 2**26  # 8192x8192; the largest picture of ImageNet is a little smaller
_MOST_OBLONG = 64


def check_dimensions(name: str, width: int, height: int) -> None:
    """Refuse a picture by its header: decoded or resized it would fill the memory.

    Raises:
        DataError: If it has more than 67 million pixels, or one side is more than 64 times the other.
    """
    if width * height > _MOST_PIXELS or max(width, height) > _MOST_OBLONG * min(width, height):
        raise DataError(
            f"{name} has {width:,}x{height:,} pixels, expected at most {_MOST_PIXELS:,} and no side more than "
            f"{_MOST_OBLONG} times the other: remove it or cut it."
        )
