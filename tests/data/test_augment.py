"""DSA: replayed exactly, differentiable, and each operation what its formula says."""

import kornia.geometry.transform as kornia
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA, OPERATIONS, color, crop, cutout, flip, rotate, scale
from tests.conftest import randn


def draw(name: str, batch: int, stream: Stream) -> Tensor:
    return torch.rand(batch, OPERATIONS[name].draws, generator=stream.generator())


@pytest.fixture
def images(stream: Stream) -> Tensor:
    return randn(stream.at("images"), 4, 3, 8, 8)


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_gradient(name: str, images: Tensor, stream: Stream) -> None:
    u = draw(name, 4, stream).double()
    assert gradcheck(lambda x: OPERATIONS[name].apply(x, u), images.requires_grad_())


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation_changes_images_and_keeps_their_shape(name: str, images: Tensor, stream: Stream) -> None:
    augmented = OPERATIONS[name].apply(images, draw(name, 4, stream).double())
    assert augmented.shape == images.shape
    assert not torch.equal(augmented, images)


def test_the_same_stream_gives_the_same_augmentation(images: Tensor, stream: Stream) -> None:
    augment = DSA()
    assert torch.equal(augment(images, stream.at(1)), augment(images, stream.at(1)))


def test_every_operation_is_drawn(images: Tensor, stream: Stream) -> None:
    augment = DSA()
    seen = set()
    for step in range(60):
        generator = stream.at(step).generator()
        name = augment.operations[int(torch.randint(len(augment.operations), (), generator=generator))]
        u = torch.rand(4, OPERATIONS[name].draws, generator=generator).to(images)
        expected = OPERATIONS[name].apply(images, u)
        assert torch.equal(augment(images, stream.at(step)), expected)
        seen.add(name)
    assert seen == set(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_parameters_are_drawn_per_image(name: str, images: Tensor, stream: Stream) -> None:
    same = images[:1].expand(8, -1, -1, -1)
    augmented = OPERATIONS[name].apply(same, draw(name, 8, stream).double())
    assert any(not torch.equal(augmented[0], other) for other in augmented[1:])


def test_drawing_leaves_the_global_generator_alone(images: Tensor, stream: Stream) -> None:
    before = torch.get_rng_state()
    DSA()(images, stream)
    assert torch.equal(torch.get_rng_state(), before)


def test_unknown_operation_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"^operations takes one or more of color, .*; got blur"):
        DSA(["crop", "blur"])


def test_color_is_brightness_then_saturation_then_contrast(images: Tensor) -> None:
    u = torch.rand(4, 3, dtype=torch.float64)
    for image, (b, s, c), ours in zip(images, u, color(images, u), strict=True):
        expected = image + (b - 0.5)
        grey = expected.mean(0, keepdim=True)
        expected = (expected - grey) * (2 * s) + grey
        torch.testing.assert_close(ours, (expected - expected.mean()) * (c + 0.5) + expected.mean())


def test_crop_shifts_by_whole_pixels_within_its_reach(images: Tensor, stream: Stream) -> None:
    seen = set()
    for step in range(40):
        for image, shifted in zip(images, crop(images, draw("crop", 4, stream.at(step))), strict=True):
            padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
            matches = [
                (dy, dx)
                for dy in range(3)
                for dx in range(3)
                if torch.equal(padded[:, dy : dy + 8, dx : dx + 8], shifted)
            ]
            assert len(matches) == 1
            seen.update(matches)
    assert len(seen) == 9


def test_cutout_removes_at_most_a_square_of_half_the_side(stream: Stream) -> None:
    ones = torch.ones(200, 1, 8, 8)
    removed = (cutout(ones, draw("cutout", 200, stream)) == 0).sum((1, 2, 3))
    assert int(removed.max()) == 16
    assert int(removed.min()) >= 4


def test_flip_mirrors_about_half_of_the_images(images: Tensor, stream: Stream) -> None:
    many = images[:1].expand(1000, -1, -1, -1)
    flipped = flip(many, draw("flip", 1000, stream))
    mirrored = (flipped == images[:1].flip(3)).all(3).all(2).all(1)
    assert 400 < int(mirrored.sum()) < 600
    assert torch.equal(flipped[~mirrored], many[~mirrored])


def test_rotation_agrees_with_kornia(images: Tensor, stream: Stream) -> None:
    parameters = draw("rotate", 4, stream).double()
    expected = kornia.rotate(images, (2 * parameters[:, 0] - 1) * 15, align_corners=True)
    # Some versions of kornia compute the matrix in float32.
    torch.testing.assert_close(rotate(images, parameters), expected, atol=1e-5, rtol=0)


def test_scaling_agrees_with_kornia(images: Tensor, stream: Stream) -> None:
    """Sampling coordinates times f is an image scaled by 1 / f."""
    parameters = draw("scale", 4, stream).double()
    factors = 1 / 1.2 + parameters * (1.2 - 1 / 1.2)
    expected = kornia.scale(images, 1 / factors, align_corners=True)
    torch.testing.assert_close(scale(images, parameters), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "neutral"), [("scale", 1 / (1 + 1.2)), ("rotate", 0.5), ("crop", 0.5)])
def test_operation_at_its_neutral_parameters_is_the_identity(name: str, neutral: float, images: Tensor) -> None:
    u = torch.full((4, 2), neutral, dtype=torch.float64)
    torch.testing.assert_close(OPERATIONS[name].apply(images, u), images)


@pytest.mark.parametrize("name", list(OPERATIONS))
def test_siamese_augmentation_treats_all_images_and_batches_alike(name: str, stream: Stream) -> None:
    image, augment = randn(stream.at("image"), 1, 3, 8, 8), DSA([name])
    alone = augment.siamese(image, stream)
    torch.testing.assert_close(augment.siamese(image.expand(5, -1, -1, -1), stream), alone.expand(5, -1, -1, -1))
