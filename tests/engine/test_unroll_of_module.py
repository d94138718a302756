"""The unroll of a reader's own module against autograd through a plain loop."""

import re
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.engine.unroll import unroll
from tests.conftest import randn


def own(settings: str = "plain") -> nn.Module:
    """A reader's own classifier of 2x6x6 images, 3 classes, in float64."""
    norm: nn.Module = nn.GroupNorm(2, 4) if settings == "plain" else nn.BatchNorm2d(4)
    with Stream(5).as_global():
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            norm,
            nn.ReLU(inplace=True),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(36, 3),
        ).double()


def by_autograd(
    model: nn.Module, images: Tensor, labels: Tensor, lr: Tensor, steps: int, start: Mapping[str, Tensor]
) -> Tensor:
    """The plain loop that keeps every graph."""
    theta = dict(start)
    for _ in range(steps):
        loss = F.cross_entropy(functional_call(model, theta, (images,)), labels)
        gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        theta = {name: p - lr * g for (name, p), g in zip(theta.items(), gradients, strict=True)}
    return torch.cat([p.reshape(-1) for p in theta.values()])


@pytest.fixture
def learned(stream: Stream) -> tuple[Tensor, Tensor, Tensor]:
    """70 images, as many soft labels, a learning rate."""
    images, labels = randn(stream.at("images"), 70, 2, 6, 6), randn(stream.at("labels"), 70, 3).softmax(1)
    return images.requires_grad_(), labels.requires_grad_(), torch.tensor(0.3, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("norm", ["plain", "batch"])
@pytest.mark.parametrize("given", ["module", "vector", "named"])
def test_the_unroll_of_a_module_equals_autograd_through_a_plain_loop(
    norm: str, given: str, learned: tuple[Tensor, Tensor, Tensor], stream: Stream
) -> None:
    model = own(norm)
    named = dict(model.named_parameters())
    start = {
        "module": None,
        "named": dict(reversed(named.items())),
        "vector": torch.cat([*map(torch.ravel, named.values())]),
    }
    before = {name: part.clone() for name, part in model.state_dict().items()}
    theta = unroll(model, *learned, steps=5, start=start[given])
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())
    oracle, along = by_autograd(model, *learned, 5, named), randn(stream.at("along"), len(theta))
    torch.testing.assert_close(theta, oracle, rtol=1e-12, atol=1e-14)
    inputs = (*learned, *named.values())
    ours, theirs = (torch.autograd.grad((end * along).sum(), inputs) for end in (theta, oracle))
    tiny = 1e-14  # the bias before a norm has no gradient but rounding errors
    for part, expected in zip(ours, theirs, strict=True):
        assert (part - expected).norm() <= 1e-10 * expected.norm() + tiny


def test_the_unroll_of_a_module_takes_classes_a_number_and_minibatches(learned: tuple[Tensor, Tensor, Tensor]) -> None:
    model, images, classes = own(), learned[0], torch.arange(70) % 3

    def draw(images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return images[step::2].flip(3), labels[step::2]

    theta = unroll(model, images, classes, 0.3, steps=2, minibatch=draw)
    start = dict(model.named_parameters())
    first = by_autograd(model, *draw(images, classes, 0), learned[2], 1, start)
    middle = FlatNetwork.of(model, (2, 6, 6)).unflatten(first)
    oracle = by_autograd(model, *draw(images, classes, 1), learned[2], 1, middle)
    ours, theirs = (torch.autograd.grad(end.square().sum(), images)[0] for end in (theta, oracle))
    assert (ours - theirs).norm() <= 1e-10 * theirs.norm()


def test_the_unroll_of_a_module_with_fused_attention_has_its_gradient(stream: Stream) -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.logits = nn.Linear(6, 6), nn.Linear(36, 3)

        def forward(self, images: Tensor) -> Tensor:
            rows = images[:, :1]
            mixed = F.scaled_dot_product_attention(self.query(rows), rows, rows)
            logits: Tensor = self.logits(mixed.flatten(1))
            return logits

    images, labels = randn(stream, 4, 2, 6, 6).float().requires_grad_(), torch.tensor([0, 1, 2, 0])
    unroll(Attending(), images, labels, 0.1, steps=2).square().sum().backward()
    assert images.grad is not None
    assert images.grad[:, 0].any()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0."),
        ({"lr": 0.0}, "lr must be one positive and finite number, got 0.0."),
        ({"lr": torch.ones(2)}, "lr must be one positive and finite number, got tensor([1., 1.])."),
        ({"images": torch.zeros(6, 72)}, "images must be of shape (B, c, h, w), got (6, 72)."),
        ({"images": torch.zeros(6, 2, 6, 6)}, "float64 on cpu, got torch.float32 on cpu."),
        ({"labels": torch.zeros(5).long()}, "labels must be of shape (6,), classes of 6 images, got (5,)."),
        ({"labels": torch.zeros(6, 4)}, "labels must be of shape (6, 3), soft labels of 6 images, got (6, 4)."),
        ({"labels": torch.full((6,), 3)}, "labels must be int64 in 0..2, got torch.int64 in 3..3."),
        ({"start": torch.zeros(7)}, "start must hold the 195 parameters of the model, got shape (7,)."),
        ({"start": {}}, "start must hold each parameter of the model under its name, got it wrong for 0.bias."),
        ({"model": nn.Flatten()}, "model must have parameters, Flatten has none."),
        ({"model": own("batch").eval()}, "model has a BatchNorm2d in evaluation mode"),
        ({"model": own().requires_grad_(False)}, "model must learn all of its parameters, got 0.weight frozen"),
        (
            {"model": nn.Conv2d(2, 4, 3).double()},
            "must return logits of shape (B, C), got (2, 4, 4, 4) for B = 2",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_unroll_of_a_module_refuses_what_it_cannot_do(wrong: dict[str, object], message: str) -> None:
    images, labels = torch.zeros(6, 2, 6, 6).double(), torch.zeros(6).long()
    right = {"model": own(), "images": images, "labels": labels, "lr": 0.1, "steps": 2}
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        unroll(**{**right, **wrong})  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)
