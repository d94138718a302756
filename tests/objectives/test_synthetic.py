"""The learnable set: class by class, from real images or noise, with a learning rate that stays positive."""

import pytest
import torch

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.objectives.synthetic import SoftLabels, SyntheticImages


def test_labels_are_class_by_class() -> None:
    synthetic = SyntheticImages((1, 4, 4), num_classes=3, images_per_class=2)
    assert synthetic.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert synthetic.images.shape == (6, 1, 4, 4)


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
def test_settling_keeps_the_student_lr_at_its_floor_or_above(stepped: float, kept: float) -> None:
    synthetic = SyntheticImages((1, 2, 2), 2, 1, student_lr=0.1, min_student_lr=1e-3)
    synthetic.student_lr.data.fill_(stepped)
    synthetic.settle()
    assert float(synthetic.student_lr.detach()) == pytest.approx(kept)


@pytest.mark.parametrize("lrs", [(0.0, 0.0), (0.1, 0.2), (float("nan"), 0.1), (float("inf"), 0.1), (0.1, -1.0)])
def test_a_student_lr_that_cannot_stay_positive_is_refused(lrs: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"student_lr must be finite and at least min_student_lr"):
        SyntheticImages((1, 2, 2), 2, 1, *lrs)


def test_no_images_per_class_is_refused() -> None:
    with pytest.raises(ValueError, match=r"images_per_class must be at least 1, got 0"):
        SyntheticImages((1, 2, 2), 2, 0)


def test_students_see_classes_or_the_softmax_of_the_logits() -> None:
    hard, soft = (SyntheticImages((1, 2, 2), 3, 1, soft=soft) for soft in (False, True))
    assert hard.decoded().targets.tolist() == [0, 1, 2]
    assert torch.equal(soft.decoded().targets, torch.full((3, 3), 1 / 3))
    assert soft.decoded().targets.requires_grad


def test_without_a_formation_students_see_the_parameter_itself() -> None:
    synthetic = SyntheticImages((1, 4, 4), 2, 1)
    assert synthetic.decoded().images is synthetic.images


def test_a_canvas_gives_as_many_training_images_as_it_has_tiles_with_its_class_and_their_own_soft_labels() -> None:
    synthetic = SyntheticImages((1, 4, 4), num_classes=2, images_per_class=3, soft=True, formation=2)
    decoded = synthetic.decoded()
    assert (synthetic.decoded_per_class, len(synthetic.labels)) == (12, 6)
    assert decoded.images.shape == (24, 1, 4, 4)
    assert decoded.labels.tolist() == [0] * 12 + [1] * 12
    assert decoded.targets.shape == (24, 2)


def test_canvases_start_as_small_real_images() -> None:
    synthetic = SyntheticImages((1, 4, 4), 2, 1, formation=2)
    real = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 4, 4)
    synthetic.start_from_real(real)
    assert synthetic.images[0, 0].tolist() == [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]]


def test_settling_keeps_pixels_in_their_limits() -> None:
    synthetic = SyntheticImages((2, 2, 2), 2, 1)
    synthetic.limits = torch.tensor([[-1.0, -2.0], [1.0, 2.0]])[:, :, None, None]
    synthetic.images.data.fill_(-9)
    synthetic.settle()
    assert synthetic.images[0, :, 0, 0].tolist() == [-1, -2]


@pytest.mark.parametrize("formation", [0, 5])
def test_a_formation_that_does_not_fit_the_images_is_refused(formation: int) -> None:
    with pytest.raises(ValueError, match=rf"formation must lie in 1\.\.4, .*; got {formation}"):
        SyntheticImages((1, 8, 4), 2, 1, formation=formation)


def test_soft_labels_start_as_a_network_sees_the_images_and_never_for_a_wrong_class() -> None:
    synthetic = SyntheticImages((1, 2, 2), 3, 1, soft=True)
    seen = torch.tensor([[2.0, 1.0, 0.0], [3.0, 1.0, 0.0], [0.0, 1.0, 4.0]])
    synthetic.start_labels_from(seen)
    assert synthetic.label_logits is not None
    assert synthetic.label_logits.tolist() == [[2, 1, 0], [1, 3, 0], [0, 1, 4]]


@pytest.mark.parametrize("lr", [-1.0, float("nan"), float("inf")])
def test_a_learning_rate_of_labels_is_finite_and_not_negative(lr: float) -> None:
    with pytest.raises(ValueError, match=r"^lr must be at least 0 and finite"):
        SoftLabels(lr)


def test_the_result_is_the_moving_average_of_the_images_where_one_is_kept() -> None:
    """A <- 0.75 a + 0.25 x after each step, from the first images on."""
    synthetic = SyntheticImages((1, 1, 1), 1, 1, image_average=0.75)
    synthetic.start_from(torch.ones(1, 1, 1, 1))
    assert float(synthetic.result) == 1
    for pixel, expected in ((5.0, 2.0), (2.0, 2.0), (6.0, 3.0)):
        synthetic.images.data.fill_(pixel)
        synthetic.settle()
        assert float(synthetic.result) == expected
    assert "averaged" in synthetic.state_dict()


def test_without_an_average_the_result_is_the_images() -> None:
    synthetic = SyntheticImages((1, 1, 1), 1, 1)
    synthetic.start_from(torch.ones(1, 1, 1, 1))
    assert torch.equal(synthetic.result, synthetic.images)
    assert not synthetic.result.requires_grad
    assert "averaged" not in synthetic.state_dict()


def test_an_average_that_never_moves_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_average must lie in \[0, 1\), got 1"):
        SyntheticImages((1, 1, 1), 1, 1, image_average=1.0)
