"""What a step logs of its two terms."""

from functools import partial

import pytest
import torch
from torch import Tensor

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import Batch
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.information.critics import PrototypeCritic
from mim4dd_pl.information.term import InformationTerm
from mim4dd_pl.modules.gradients import Gradients, information_gradients, log_values
from mim4dd_pl.objectives.base import Match
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


@pytest.mark.parametrize(("layers", "passes"), [(["layer1", "logits"], 2), (["logits"], 2), (None, 0)])
def test_the_term_sees_logits_of_the_same_pass_and_only_where_it_reads_them(
    network: FlatNetwork, stream: Stream, layers: list[str] | None, passes: int
) -> None:
    """One pass for each side, without the classifier for a term on maps; value and gradient are a plain loop's."""
    term = InformationTerm(network.layer_shapes(), 3, partial(PrototypeCritic, temperature=0.5), layers=layers)
    theta = network.initial(stream)
    synthetic, real = SyntheticImages((1, 4, 4), 3, 2), Batch(torch.randn(9, 1, 4, 4), torch.arange(9) % 3)
    synthetic.start_from_noise(stream.at("pixels"))
    decoded, sides = synthetic.decoded(), ((theta, synthetic.images), (theta, real.images))
    maps = [(*network.layers(*side), *[network(*side)][: passes // 2]) for side in sides]
    loss = term(*maps, synthetic.labels, real.labels).loss
    seen: list[int] = []
    with network._network.get_submodule("classifier").register_forward_hook(lambda *_: seen.append(1)):
        match = Match(loss[None], theta[None], None)
        found = information_gradients(match, decoded, Derivatives(network), term, [real])
    assert len(seen) == passes
    assert torch.equal(found[0], loss.detach())
    torch.testing.assert_close(found[2], torch.autograd.grad(loss, synthetic.images)[0])
