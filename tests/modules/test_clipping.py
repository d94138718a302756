"""How long the pixel gradient of a step may be."""

import pytest
import torch

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.modules.clipping import FixedClip, MovingClip, clip_norm
from tests.conftest import randn


def test_clip_norm_shortens_long_gradients_only(stream: Stream) -> None:
    gradient = randn(stream, 10)
    assert float(clip_norm(gradient, 0.1).norm()) == pytest.approx(0.1)
    torch.testing.assert_close(clip_norm(gradient, 100.0), gradient)
    assert clip_norm(torch.zeros(3), 0.1).norm() == 0


def test_a_fixed_clip_shortens_what_is_longer(stream: Stream) -> None:
    gradient = randn(stream, 2, 3)
    torch.testing.assert_close(FixedClip(0.5)(gradient), gradient * 0.5 / gradient.norm())
    torch.testing.assert_close(FixedClip(100.0)(gradient), gradient)


def test_a_moving_clip_follows_the_clipped_lengths() -> None:
    """Factor 2, decay 0.5: lengths 1, 1.5, 100, 1 become 1, 1.5, 2.5 and 1."""
    clip, kept = MovingClip(factor=2.0, decay=0.5), []
    for length in (1.0, 1.5, 100.0, 1.0):
        kept.append(float(clip(torch.tensor([length, 0.0])).norm()))
    # After each step the average is 1, 1.25, 1.875, 1.4375.
    assert kept == pytest.approx([1.0, 1.5, 2.5, 1.0])
    assert float(clip.average) == pytest.approx(1.4375)


def test_a_gradient_of_zero_stays_zero() -> None:
    clip = MovingClip()
    assert not clip(torch.zeros(3)).any()
    assert clip(torch.ones(3)).norm() > 0


def test_the_average_travels_with_the_state() -> None:
    clip, other = MovingClip(), MovingClip()
    clip(torch.ones(4))
    other.load_state_dict(clip.state_dict())
    assert float(other.average) == 2


@pytest.mark.parametrize("length", [0.0, -1.0, float("inf"), float("nan")])
def test_a_length_that_cannot_be_is_refused(length: float) -> None:
    with pytest.raises(ValueError, match="image_gradient_clip must be positive and finite"):
        FixedClip(length)


def test_moving_clips_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="a factor of at least 1 and a decay in"):
        MovingClip(factor=0.9)
    with pytest.raises(ValueError, match="a factor of at least 1 and a decay in"):
        MovingClip(decay=1.0)
