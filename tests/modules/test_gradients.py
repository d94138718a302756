"""What a step logs of its two terms."""

import pytest
import torch
from torch import Tensor

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.information.term import InformationTerm
from mim4dd_pl.modules.gradients import Gradients, log_values
from mim4dd_pl.objectives.synthetic import SyntheticImages
from tests.conftest import randn


@pytest.fixture
def host(stream: Stream) -> Tensor:
    """A pixel gradient, of the small length that they have late in a run."""
    return 1e-9 * randn(stream, 3, 1, 4, 4, dtype=torch.float32)


def cosine(host: Tensor, information: Tensor) -> float:
    """As it is logged."""
    none, term = torch.zeros(()), InformationTerm([(4, 2, 2)], 3)
    mean = Gradients(none, host, none, torch.zeros(0), none, torch.zeros(1), information, none, torch.zeros(0))
    return float(log_values(mean, SyntheticImages((1, 4, 4), 3, 1), term, none)["train/gradient_cosine"])


def test_the_cosine_of_the_terms_is_that_of_their_pixel_gradients(host: Tensor, stream: Stream) -> None:
    other = randn(stream.at("other"), *host.shape, dtype=torch.float32)
    expected = (host * other).sum() / (host.norm() * other.norm())
    assert cosine(host, other) == pytest.approx(float(expected))
    assert cosine(host, 7 * host) == pytest.approx(1)
    assert cosine(host, -host) == pytest.approx(-1)


def test_the_cosine_with_a_term_without_gradient_is_zero(host: Tensor) -> None:
    assert cosine(host, torch.zeros_like(host)) == 0
    assert cosine(torch.zeros_like(host), host) == 0
