"""Host and add-on in one backward pass, against the same by hand."""

import pytest
import torch
from torch import Tensor, nn

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.information.backward import balanced_backward
from mim4dd_pl.information.term import Information, InformationTerm
from tests.conftest import randn

LABELS, REAL_LABELS = torch.arange(3), torch.arange(6) % 3


class Loop:
    """Somebody's own loop: a frozen network shows both sides, a scale is learned along with the pixels."""

    def __init__(self, stream: Stream) -> None:
        with stream.at("modules").as_global():
            self.network = nn.Conv2d(1, 4, 3).double().requires_grad_(False)
            self.term = InformationTerm([(4, 4, 4)], 3).double()
        self.pixels = randn(stream.at("pixels"), 3, 1, 6, 6).requires_grad_()
        self.scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
        self.only_host = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
        self.real = self.network(randn(stream.at("real"), 6, 1, 6, 6))

    @property
    def leaves(self) -> list[Tensor]:
        return [self.pixels, self.scale, self.only_host, *self.term.heads.parameters()]

    def losses(self) -> tuple[Tensor, Tensor]:
        features = self.network(self.scale * self.pixels)  # a graph that both share
        host = (self.only_host * features - 1).square().mean()
        return host, self.term([features], [self.real], LABELS, REAL_LABELS).loss


@pytest.fixture
def loop(stream: Stream) -> Loop:
    return Loop(stream)


def by_hand(loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True))


def test_the_pass_adds_what_autograd_gives_by_hand(loop: Loop) -> None:
    loop.scale.grad = torch.tensor(7.0, dtype=torch.float64)
    host, term = (by_hand(loss, loop.leaves) for loss in loop.losses())
    factor = 0.4 * host[0].norm() / term[0].norm()
    torch.testing.assert_close(balanced_backward(*loop.losses(), loop.pixels, share=0.4), factor)
    for place, leaf in enumerate(loop.leaves):
        expected = host[place] + (factor if place < 3 else 1.0) * term[place] + (7.0 if place == 1 else 0.0)
        torch.testing.assert_close(leaf.grad, expected)


def test_pixels_may_be_made_by_something_that_learns(loop: Loop, stream: Stream) -> None:
    """A latent behind the pixels gets the joint gradient, also where the host does not reach it."""
    latent = loop.pixels.detach().clone().requires_grad_()
    loop.pixels = 2 * latent
    _, term = loop.losses()
    (expected,) = by_hand(term, [latent])
    balanced_backward(torch.zeros((), dtype=torch.float64), term, loop.pixels, share=0.25)
    torch.testing.assert_close(latent.grad, 0.25 * expected)


def test_without_a_host_gradient_the_share_is_a_weight(loop: Loop) -> None:
    _, term = loop.losses()
    expected = by_hand(term, loop.leaves[:1] + loop.leaves[3:4])
    factor = balanced_backward(0 * loop.pixels.sum(), term, loop.pixels, share=0.5)
    assert float(factor) == 0.5
    torch.testing.assert_close([loop.pixels.grad, loop.leaves[3].grad], [0.5 * expected[0], expected[1]])


def test_without_a_term_gradient_the_host_is_alone(loop: Loop) -> None:
    host, _ = loop.losses()
    expected = by_hand(host, loop.leaves[:3])
    assert float(balanced_backward(host, 0 * loop.pixels.sum(), loop.pixels)) == 0
    torch.testing.assert_close([leaf.grad for leaf in loop.leaves[:3]], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"host_loss": torch.ones(2)}, r"host_loss must be a tensor of shape \(\), got \(2,\)"),
        (
            {"term_loss": Information(torch.tensor(1.0), torch.zeros(1))},
            r"term_loss must be a tensor of shape \(\), got Information",
        ),
        ({"pixels": torch.ones(2)}, "pixels must require a gradient"),
        ({"share": -0.1}, "share must be at least 0 and finite, got -0.1"),
    ],
)
def test_what_cannot_be_balanced_is_refused(changes: dict[str, object], message: str) -> None:
    pixels = torch.ones(2, requires_grad=True)
    arguments = {"host_loss": pixels.sum(), "term_loss": pixels.sum(), "pixels": pixels} | changes
    with pytest.raises(ValueError, match=message):
        balanced_backward(**arguments)  # type: ignore[arg-type]
