"""Pictures of any size as squares of one: how they are read and resized, and what is refused by its header."""

import os
import struct

from PIL import ExifTags, Image, ImageFile, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from mim4dd_pl.basics.errors import DataError, first_line


def check_image_size(image_size: int | None) -> None:
    """Refuse sides that no network here can take."""
    if image_size is not None and not 4 <= image_size <= 1024:
        raise ValueError(f"image_size must lie in 4..1024 pixels, got {image_size}.")


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


_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
"""What a picture may be, whatever its name says: Pillow runs other programs for some of the rest (PostScript)."""
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


def read_picture(path: str, side: int) -> Tensor:
    """A picture as a viewer shows it on white: upright by its EXIF data, shape (3, side, side), uint8.

    Raises:
        DataError: If it is none, too large, or has more than 8 bits a channel.
    """
    if not os.path.isfile(path):
        raise DataError(f"{path} cannot be read as an image: it is no file.")  # a pipe would block for ever
    try:
        with Image.open(path, formats=_FORMATS) as picture:
            check_dimensions(path, *picture.size)
            if picture.mode[0] in "IF":
                # Pillow would cut more than 8 bits to white.
                raise DataError(f"{path} has pixels of mode {picture.mode}, expected 8 bits a channel.")
            pixels = transforms.pil_to_tensor(_upright(_on_white(picture), picture))
    except (OSError, SyntaxError, ValueError, EOFError, *_BOMBS) as error:
        raise DataError(f"{path} cannot be read as an image: {first_line(error)}") from error
    return square(pixels, side)


def _on_white(picture: ImageFile.ImageFile) -> Image.Image:
    """RGB; transparent pixels, whatever the mode keeps them in, show white."""
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    if picture.format == "PNG" and (value := picture.info.get("transparency")) is not None:
        # Pillow brings pixels of 2, 4 and 16 bits to 8, and leaves the transparent one as it is stored.
        stored = picture.tile[0][3]
        if stored in ("L;2", "L;4"):
            picture.info["transparency"] = value * (85 if stored == "L;2" else 17)
        elif stored == "RGB;16B":
            picture.info["transparency"] = tuple(channel >> 8 for channel in value)
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA")).convert("RGB")


def _upright(plain: Image.Image, loaded: Image.Image) -> Image.Image:
    """``plain`` turned as the EXIF data of ``loaded`` say; as it is where these are damaged."""
    try:
        # Read after the pixels: Pillow turns a TIFF itself when it loads it.
        orientation = loaded.getexif().get(ExifTags.Base.Orientation, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        return plain
    plain.info = {}  # of the data only the orientation: Pillow writes them anew, which fails if others are odd
    plain.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(plain)
