"""Pictures of any size as squares of one: how they are read and resized, and what is refused by its header."""

import os
import struct
from contextlib import nullcontext
from functools import cache
from typing import NamedTuple

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


KINDS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "JPEG2000")
"""What a picture may be, whatever its name says: Pillow runs other programs for some of the rest (PostScript)."""
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@cache
def _known() -> tuple[tuple[str, ...], set[str]]:
    """Those of the kinds that this Pillow reads, and the suffixes of their names."""
    Image.init()
    kinds = tuple(kind for kind in KINDS if kind in Image.OPEN)
    return kinds, {suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds}


def is_picture(path: str) -> bool:
    """Whether a file should be read as a picture: its name says that it is one, or else its content does."""
    kinds, suffixes = _known()
    if os.path.splitext(path)[1].lower() in suffixes:
        return True
    try:
        with Image.open(path, formats=kinds) if os.path.isfile(path) else nullcontext() as picture:
            return picture is not None
    except _BOMBS:
        return True
    except Exception:  # at a file that is something else, Pillow's readers raise whatever they stumble upon
        return False


class Picture(NamedTuple):
    """Pixels (c, side, side), uint8, and whether the file holds further pages or frames."""

    pixels: Tensor
    more: bool


def read_picture(path: str, side: int, channels: int = 3) -> Picture:
    """A picture, or the first of several, as a viewer shows it on white: upright by its EXIF data.

    Args:
        path: The file.
        side: Of the square in pixels.
        channels: 3 for red, green and blue, 1 for grey.

    Raises:
        DataError: If it is none, too large, or has more than 8 bits a channel.
    """
    if not os.path.isfile(path):
        raise DataError(f"{path} cannot be read as an image: it is no file.")  # a pipe would block for ever
    try:
        with Image.open(path, formats=_known()[0]) as picture:
            check_dimensions(path, *picture.size)
            if picture.mode[0] in "IF":
                # Pillow would cut more than 8 bits to white.
                raise DataError(f"{path} has pixels of mode {picture.mode}, expected 8 bits a channel.")
            more = getattr(picture, "is_animated", False)
            shown = _upright(_on_white(picture), picture)
            pixels = transforms.pil_to_tensor(shown.convert("L") if channels == 1 else shown)
    except (OSError, SyntaxError, ValueError, EOFError, *_BOMBS) as error:
        raise DataError(f"{path} cannot be read as an image: {first_line(error)}") from error
    return Picture(square(pixels, side), more)


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
