"""The loss of students against torch's own."""

import torch
from torch.nn import functional

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.engine.derivatives import cross_entropy
from tests.conftest import randn


def test_cross_entropy_equals_torch(stream: Stream) -> None:
    logits, labels = randn(stream, 5, 4), torch.tensor([0, 3, 1, 1, 2])
    torch.testing.assert_close(cross_entropy(logits, labels), functional.cross_entropy(logits, labels))


def test_cross_entropy_with_soft_labels_equals_torch_and_that_of_classes(stream: Stream) -> None:
    logits, labels = randn(stream, 5, 4), torch.tensor([0, 3, 1, 1, 2])
    soft = randn(stream.at("soft"), 5, 4).softmax(1)
    torch.testing.assert_close(cross_entropy(logits, soft), functional.cross_entropy(logits, soft))
    hot = functional.one_hot(labels).double()
    torch.testing.assert_close(cross_entropy(logits, hot), cross_entropy(logits, labels))


def test_cross_entropy_of_huge_logits_is_finite() -> None:
    assert cross_entropy(torch.tensor([[1e30, -1e30]]), torch.tensor([0])) == 0
