"""Canvases and the training images in them."""

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn.functional import interpolate

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.formation import decode, mix
from tests.conftest import randn


def cut_out(canvas: Tensor, formation: int) -> list[Tensor]:
    """The tiles of one canvas (c, h, w), enlarged one by one; the last are filled up with zeros."""
    channels, height, width = canvas.shape
    rows, columns = (height + formation - 1) // formation, (width + formation - 1) // formation
    images = []
    for i in range(formation):
        for j in range(formation):
            tile = canvas.new_zeros(channels, rows, columns)
            part = canvas[:, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns]
            tile[:, : part.shape[1], : part.shape[2]] = part
            images.append(interpolate(tile[None], size=(height, width), mode="bilinear", align_corners=False)[0])
    return images


@pytest.mark.parametrize(("shape", "formation"), [((3, 8, 8), 2), ((1, 7, 5), 2), ((2, 9, 6), 3), ((1, 4, 4), 4)])
def test_decoding_equals_a_loop_of_cut_and_enlarge(shape: tuple[int, int, int], formation: int, stream: Stream) -> None:
    canvases = randn(stream, 3, *shape)
    expected = torch.stack([image for canvas in canvases for image in cut_out(canvas, formation)])
    assert torch.allclose(decode(canvases, formation), expected, rtol=0, atol=1e-12)


def test_decoding_has_the_gradient_of_its_formula(stream: Stream) -> None:
    canvases = randn(stream, 2, 1, 5, 4).requires_grad_()
    assert gradcheck(lambda given: decode(given, 2), canvases)


def test_without_a_formation_nothing_changes(stream: Stream) -> None:
    images = randn(stream, 2, 1, 4, 4)
    assert decode(images, 1) is images
    assert mix(images, 1) is images


def test_tiles_of_one_colour_come_back_in_their_order() -> None:
    colours = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 6, 6)
    assert torch.equal(decode(mix(colours, 2), 2), colours)


def test_mixing_averages_and_keeps_the_size_where_tiles_do_not_fit(stream: Stream) -> None:
    images = randn(stream, 4, 2, 5, 5)
    canvas = mix(images, 2)
    assert canvas.shape == (1, 2, 5, 5)
    small = interpolate(images, size=(3, 3), mode="area")
    assert torch.equal(canvas[0, :, :3, :3], small[0])
    assert torch.equal(canvas[0, :, :3, 3:], small[1][:, :, :2])
    assert torch.equal(canvas[0, :, 3:, 3:], small[3][:, :2, :2])
