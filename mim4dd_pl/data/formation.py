"""Multi-formation: several training images from the pixels of one stored image.

A stored image is a *canvas* of f x f tiles, each a small image of the canvas's class. Decoding cuts the tiles out and
enlarges each to the size of a whole image: f^2 training images from the numbers of one.

Source: Kim et al. 2022, IDC (arXiv:2205.14959), Section 3.2.
"""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import interpolate, pad


def check_formation(formation: int, image_shape: Sequence[int]) -> None:
    """Raise ValueError unless images of ``image_shape`` (c, h, w) can hold ``formation`` tiles a side."""
    side = min(image_shape[1:])
    if not 1 <= formation <= side:
        raise ValueError(f"formation must lie in 1..{side}, the shorter side of the images; got {formation}.")


def decode(canvases: Tensor, formation: int) -> Tensor:
    """The training images of canvases, differentiable.

    Where a side is no multiple of f, zeros are added at its end: the mean colour of normalised images.

    Args:
        canvases: Shape (S, c, h, w).
        formation: f, tiles a side; 1 leaves the canvases as they are.

    Returns:
        Shape (S f^2, c, h, w): canvas by canvas, in each row by row. Bilinear, without aligned corners.
    """
    if formation == 1:
        return canvases
    height, width = canvases.shape[2:]
    rows, columns = -(-height // formation), -(-width // formation)
    padded = pad(canvases, (0, columns * formation - width, 0, rows * formation - height))
    tiles = padded.unflatten(3, (formation, columns)).unflatten(2, (formation, rows))  # (S, c, f, rows, f, columns)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    return interpolate(tiles, size=(height, width), mode="bilinear", align_corners=False)


def mix(images: Tensor, formation: int) -> Tensor:
    """Canvases whose tiles are images made smaller by averaging: how canvases of real images start.

    Args:
        images: Shape (S f^2, c, h, w), in the order of :func:`decode`.
        formation: f, tiles a side; 1 leaves the images as they are.

    Returns:
        Shape (S, c, h, w); where a side is no multiple of f, the last tiles lose their end.
    """
    if formation == 1:
        return images
    height, width = images.shape[2:]
    small = interpolate(images, size=(-(-height // formation), -(-width // formation)), mode="area")
    tiles = small.unflatten(0, (-1, formation, formation)).permute(0, 3, 1, 4, 2, 5)  # (S, c, f, rows, f, columns)
    canvases: Tensor = tiles.flatten(4, 5).flatten(2, 3)[..., :height, :width]
    return canvases.contiguous()
