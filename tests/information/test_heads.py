"""Heads pool, embed and end on the sphere."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn.functional import linear, normalize, relu

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.information.heads import Head, IdentityHead, LinearHead, MLPHead, Pool, ResidualMLPHead
from tests.conftest import randn

SHAPES = [(4, 8, 8), (8, 2, 2)]
SMALL = partial(MLPHead, hidden=5, depth=2, dim=3), partial(ResidualMLPHead, hidden=5, depth=2, dim=3)


@pytest.fixture(autouse=True)
def seeded(stream: Stream) -> None:
    """Parameters start from torch's global generator, as in a run."""
    torch.manual_seed(0)


@pytest.mark.parametrize("pool", ["gap", 4, "flatten"])
@pytest.mark.parametrize("head", [IdentityHead, LinearHead, *SMALL])
@pytest.mark.parametrize("shape", SHAPES)
def test_heads_end_on_the_unit_sphere(
    head: Callable[..., Head], shape: tuple[int, int, int], pool: Pool, stream: Stream
) -> None:
    embedded = head(shape, pool=pool)(randn(stream, 5, *shape, dtype=torch.float32))
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(5))


@pytest.mark.parametrize("pool", ["gap", 1])
def test_gap_is_the_mean_of_a_map(pool: Pool, stream: Stream) -> None:
    features = randn(stream, 5, 4, 8, 8)
    torch.testing.assert_close(IdentityHead((4, 8, 8), pool)(features), normalize(features.mean((2, 3))))


def test_a_grid_averages_over_its_cells_and_never_enlarges(stream: Stream) -> None:
    features = randn(stream, 5, 4, 8, 8)
    cells = features.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean((3, 5))
    torch.testing.assert_close(IdentityHead((4, 8, 8), pool=4)(features), normalize(cells.flatten(1)))
    assert IdentityHead((4, 2, 2), pool=4).num_features == 4 * 2 * 2


def test_flatten_keeps_the_map(stream: Stream) -> None:
    features = randn(stream, 5, 4, 8, 8)
    torch.testing.assert_close(IdentityHead((4, 8, 8), pool="flatten")(features), normalize(features.flatten(1)))


def test_a_linear_head_is_its_formula(stream: Stream) -> None:
    head, features = LinearHead((4, 2, 2), dim=3, pool="flatten").double(), randn(stream, 5, 4, 2, 2)
    torch.testing.assert_close(head(features), normalize(linear(features.flatten(1), *head.parameters())))


def test_an_mlp_head_is_its_formula(stream: Stream) -> None:
    head, features = MLPHead((4, 2, 2), hidden=5, depth=2, dim=3, pool="flatten").double(), randn(stream, 5, 4, 2, 2)
    w1, b1, w2, b2, w3, b3 = head.parameters()
    hidden = relu(relu(features.flatten(1) @ w1.T + b1) @ w2.T + b2)
    torch.testing.assert_close(head(features), normalize(hidden @ w3.T + b3))


def test_a_residual_head_is_its_formula(stream: Stream) -> None:
    head, features = (
        ResidualMLPHead((4, 2, 2), hidden=5, depth=1, dim=3, pool="flatten").double(),
        randn(stream, 5, 4, 2, 2),
    )
    w, b, w1, b1, w2, b2 = head.parameters()
    z = features.flatten(1) @ w.T + b
    torch.testing.assert_close(head(features), normalize(z + relu(z @ w1.T + b1) @ w2.T + b2))


def test_residual_blocks_that_add_nothing_leave_the_linear_head(stream: Stream) -> None:
    features, residual, plain = randn(stream, 5, 4, 8, 8).float(), ResidualMLPHead((4, 8, 8)), LinearHead((4, 8, 8))
    plain.project = residual.project
    for parameter in residual.blocks.parameters():
        torch.nn.init.zeros_(parameter)
    assert torch.equal(residual(features), plain(features))


@pytest.mark.parametrize("head", [partial(LinearHead, dim=3), *SMALL])
def test_head_gradient(head: Callable[..., Head], stream: Stream) -> None:
    built = head((2, 4, 4), pool=2).double()
    assert gradcheck(built, randn(stream, 2, 2, 4, 4).requires_grad_())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearHead((4, 2, 2), dim=0), "^dim must be at least 1, got 0"),
        (lambda: MLPHead((4, 2, 2), hidden=0), "^hidden must be at least 1, got 0"),
        (lambda: MLPHead((4, 2, 2), depth=0), "^depth must be at least 1, got 0"),
        (lambda: ResidualMLPHead((4, 2, 2), hidden=-3), "^hidden must be at least 1, got -3"),
        (lambda: ResidualMLPHead((4, 2, 2), depth=0), "^depth must be at least 1, got 0"),
        (lambda: IdentityHead((4, 2, 2), pool=0), "^pool must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
