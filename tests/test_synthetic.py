"""The learnable set: class by class, from real images or noise, with a learning rate that stays positive."""

import pytest
import torch

from mim4dd_pl.randomness import Stream
from mim4dd_pl.synthetic import SyntheticImages


def test_labels_are_class_by_class() -> None:
    synthetic = SyntheticImages((1, 4, 4), num_classes=3, images_per_class=2)
    assert synthetic.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert synthetic.images.shape == (6, 1, 4, 4)
    assert len(synthetic) == 6


def test_noise_is_standard_normal_and_a_function_of_the_stream(stream: Stream) -> None:
    synthetic = SyntheticImages((3, 16, 16), num_classes=10, images_per_class=2)
    synthetic.start_from_noise(stream)
    first = synthetic.images.detach().clone()
    assert float(first.mean()) == pytest.approx(0, abs=0.05)
    assert float(first.std()) == pytest.approx(1, abs=0.05)
    synthetic.start_from_noise(stream)
    assert torch.equal(synthetic.images, first)


def test_start_from_copies(stream: Stream) -> None:
    synthetic, real = SyntheticImages((1, 2, 2), 2, 1), torch.ones(2, 1, 2, 2)
    synthetic.start_from(real)
    real.zero_()
    assert torch.equal(synthetic.images, torch.ones(2, 1, 2, 2))


@pytest.mark.parametrize(("stepped", "kept"), [(-3.0, 1e-3), (1e-4, 1e-3), (0.5, 0.5)])
def test_project_keeps_the_student_lr_at_its_floor_or_above(stepped: float, kept: float) -> None:
    synthetic = SyntheticImages((1, 2, 2), 2, 1, student_lr=0.1, min_student_lr=1e-3)
    synthetic.student_lr.data.fill_(stepped)
    synthetic.project()
    assert float(synthetic.student_lr.detach()) == pytest.approx(kept)


@pytest.mark.parametrize("lrs", [(0.0, 0.0), (0.1, 0.2), (float("nan"), 0.1), (float("inf"), 0.1), (0.1, -1.0)])
def test_a_student_lr_that_cannot_stay_positive_is_refused(lrs: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"model\.student_lr must be finite and at least model\.min_student_lr"):
        SyntheticImages((1, 2, 2), 2, 1, *lrs)


def test_no_images_per_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.images_per_class must be at least 1, got 0"):
        SyntheticImages((1, 2, 2), 2, 0)
