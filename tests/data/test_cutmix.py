"""CutMix: a box of the partner's pixels, labels by area, and draws that repeat."""

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import CutMix

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.cutmix import cutmix
from tests.conftest import randn


@pytest.fixture
def images(stream: Stream) -> Tensor:
    return randn(stream.at("images"), 5, 3, 8, 6)


@pytest.fixture
def labels(stream: Stream) -> Tensor:
    return randn(stream.at("labels"), 5, 4).softmax(1)


def test_a_box_shows_the_partners_pixels_and_the_labels_are_shared_by_area(
    images: Tensor, labels: Tensor, stream: Stream
) -> None:
    areas = set()
    for step in range(100):
        mixed, shared = cutmix(images, labels, 1.0, stream.at(step))
        pasted = (mixed[0, 0] != images[0, 0]).tolist()
        rows, columns = [y for y in range(8) if any(pasted[y])], [x for x in range(6) if any(r[x] for r in pasted)]
        assert rows == list(range(8))[min(rows, default=0) : max(rows, default=-1) + 1]
        assert columns == list(range(6))[min(columns, default=0) : max(columns, default=-1) + 1]
        area = len(rows) * len(columns) / 48
        for b in range(5):
            for y in range(8):
                for x in range(6):
                    source = images[b - 1] if y in rows and x in columns else images[b]
                    assert torch.equal(mixed[b, :, y, x], source[:, y, x])
            torch.testing.assert_close(shared[b], (1 - area) * labels[b] + area * labels[b - 1])
        areas.add(area)
    assert min(areas) < 0.1
    assert max(areas) >= 0.5
    assert len(areas) > 10


def test_a_box_and_its_area_mix_as_in_torchvision(images: Tensor, labels: Tensor, stream: Stream) -> None:
    mixed, shared = cutmix(images, labels, 1.0, stream.at(3))
    ys, xs = (mixed[0, 0] != images[0, 0]).nonzero().unbind(1)
    y1, y2, x1, x2 = (int(edge) for edge in (ys.min(), ys.max() + 1, xs.min(), xs.max() + 1))
    left = 1 - (y2 - y1) * (x2 - x1) / 48
    given = {"labels": labels, "batch_size": 5, "box": (x1, y1, x2, y2), "lam_adjusted": left}
    assert torch.equal(mixed, CutMix().transform(images, given))
    torch.testing.assert_close(shared, CutMix().transform(labels, given))


def test_boxes_are_as_large_as_torchvisions(stream: Stream) -> None:
    """Mean and spread of the areas over 2,000 draws each, within five standard errors."""
    images, labels = torch.zeros(2, 1, 16, 16), torch.eye(2)
    with stream.as_global():
        theirs = torch.stack([CutMix()(images, labels)[1][0, 1] for _ in range(2000)])
    ours = torch.stack([cutmix(images, labels, 1.0, stream.at(step))[1][0, 1] for step in range(2000)])
    error = theirs.std() * (2 / 2000) ** 0.5
    assert abs(ours.mean() - theirs.mean()) < 5 * error
    assert abs(ours.std() - theirs.std()) < 5 * error


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (0.5, 160, 240), (1.0, 400, 400)])
def test_minibatches_are_mixed_with_the_probability(
    probability: float, least: int, most: int, images: Tensor, labels: Tensor, stream: Stream
) -> None:
    count = 0
    for step in range(400):
        mixed, shared = cutmix(images, labels, probability, stream.at(step))
        whole = mixed is images and shared is labels
        count += not whole
        if not whole:  # then as it always is with this stream
            assert torch.equal(mixed, cutmix(images, labels, 1.0, stream.at(step))[0])
    assert least <= count <= most


def test_the_same_stream_mixes_alike_and_leaves_the_global_generator_alone(
    images: Tensor, labels: Tensor, stream: Stream
) -> None:
    before, kept = torch.get_rng_state(), images.clone()
    first, second, other = (cutmix(images, labels, 1.0, stream.at(at)) for at in (1, 1, 2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(images, kept)


def test_a_single_image_is_its_own_partner(images: Tensor, labels: Tensor, stream: Stream) -> None:
    mixed, shared = cutmix(images[:1], labels[:1], 1.0, stream)
    assert torch.equal(mixed, images[:1])
    assert torch.equal(shared, labels[:1])
