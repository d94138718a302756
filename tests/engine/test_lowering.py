"""Networks in the form for the compiler are the same networks."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp
from torch.nn.functional import conv2d

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.engine.lowering import NormsAsFormulas, lower
from mim4dd_pl.engine.winograd import saves, winograd_conv
from mim4dd_pl.networks.batchnorm import BatchNorm
from mim4dd_pl.networks.convnet import ConvNet
from tests.conftest import randn


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (8, 6), (3, 9)])
@pytest.mark.parametrize("padding", [(1, 1), (0, 2), (3, 3)])
def test_winograd_equals_the_direct_convolution(
    size: tuple[int, int], padding: tuple[int, int], stream: Stream
) -> None:
    images, weight = randn(stream.at("images"), 2, 3, *size), randn(stream.at("weight"), 4, 3, 3, 3)
    bias = randn(stream.at("bias"), 4)
    for with_bias in (bias, None):
        expected = conv2d(images, weight, with_bias, padding=padding)
        torch.testing.assert_close(winograd_conv(images, weight, with_bias, padding), expected, rtol=1e-11, atol=1e-11)


def test_winograd_has_the_derivatives_of_the_convolution(stream: Stream) -> None:
    inputs = [randn(stream.at("images"), 1, 2, 4, 5), randn(stream.at("weight"), 2, 2, 3, 3), randn(stream, 2)]
    inputs = [part.requires_grad_() for part in inputs]
    conv = partial(winograd_conv, padding=(1, 1))
    assert gradcheck(conv, inputs)
    assert gradgradcheck(conv, inputs, atol=1e-4)


def test_winograd_in_single_precision_is_near_the_direct_convolution(stream: Stream) -> None:
    images, weight = randn(stream.at("images"), 4, 128, 16, 16), randn(stream.at("weight"), 128, 128, 3, 3)
    exact = conv2d(images, weight, padding=1)
    error = winograd_conv(images.float(), weight.float(), None, (1, 1)).double() - exact
    assert error.norm() < 2e-6 * exact.norm()


def test_tiles_are_used_where_they_waste_little() -> None:
    assert [side for side in range(1, 17) if not saves(side, side)] == [1, 2, 5]


@pytest.mark.parametrize("norm", ["instance", "group", "batch", "layer", "none"])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 28, 28)])
def test_a_lowered_network_is_the_same_function_of_the_same_parameters(
    norm: str, shape: tuple[int, int, int], stream: Stream
) -> None:
    with stream.as_global():
        network = ConvNet(shape, 5, depth=3, width=16, norm=norm).double()  # type: ignore[arg-type]
    images, names = randn(stream, 3, *shape), [name for name, _ in network.named_parameters()]
    expected = network(images)
    lowered = lower(network, torch.device("cpu"))
    with NormsAsFormulas():
        torch.testing.assert_close(lowered(images), expected, rtol=1e-10, atol=1e-10)
    assert [name for name, _ in lowered.named_parameters()] == names
    assert not any(isinstance(module, nn.Conv2d) for module in lowered.modules())


@pytest.mark.parametrize(
    "norm",
    [
        nn.GroupNorm(2, 4),
        nn.LayerNorm([3, 2]),
        nn.LayerNorm(2, elementwise_affine=False),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.BatchNorm2d(4).eval(),
        nn.InstanceNorm2d(4, affine=True),
        BatchNorm(4),
    ],
    ids=str,
)
def test_a_norm_as_formula_is_the_norm_and_has_its_second_derivative_in_forward_mode(
    norm: nn.Module, stream: Stream
) -> None:
    norm.double().requires_grad_(False)
    images, along, weight = randn(stream, 3, 3, 4, 3, 2)

    def loss(images: Tensor) -> Tensor:
        value: Tensor = (weight * norm(images).square()).sum()
        return value

    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (expected,) = torch.autograd.grad((gradient * along).sum(), leaf)
    plain = norm(images)
    with NormsAsFormulas():
        torch.testing.assert_close(norm(images), plain)
        torch.testing.assert_close(grad(lambda images: jvp(loss, (images,), (along,))[1])(images), expected)


def test_other_convolutions_and_other_devices_keep_theirs() -> None:
    class Dilated(ConvNet):
        def __init__(self) -> None:
            super().__init__((3, 8, 8), 2, depth=1, width=16)
            self.blocks = nn.ModuleList([nn.Conv2d(3, 16, 3, padding=1, dilation=2)])

    class Standardised(nn.Conv2d):
        """With a forward of its own; what it inherits says nothing of it."""

    class Derived(ConvNet):
        def __init__(self) -> None:
            super().__init__((3, 8, 8), 2, depth=1, width=16)
            self.blocks = nn.ModuleList([Standardised(3, 16, 3, padding=1)])

    with Stream(0).as_global():
        assert type(lower(Derived(), torch.device("cpu")).get_submodule("blocks.0")) is Standardised
        kept = [lower(Dilated(), torch.device("cpu")), lower(ConvNet((3, 8, 8), 2, 1, 16), torch.device("cuda"))]
    for network in kept:
        assert any(isinstance(module, nn.Conv2d) for module in network.modules())
