"""Networks show their layers, and are pure functions of one vector."""

from functools import partial

import pytest
import torch
from torch import Tensor

from mim4dd_pl.networks import ConvNet, FlatNetwork
from mim4dd_pl.randomness import Stream
from tests.conftest import randn, to_module


@pytest.mark.parametrize(
    ("depth", "width", "shape", "count"),
    [
        (3, 128, (3, 32, 32), 320_010),  # as the field's papers state it
        (2, 32, (1, 8, 8), 320 + 64 + 9248 + 64 + 1290),  # convolution, norm, convolution, norm, linear
    ],
)
def test_parameter_count(depth: int, width: int, shape: tuple[int, int, int], count: int) -> None:
    assert FlatNetwork(partial(ConvNet, depth=depth, width=width), shape, 10).num_parameters == count


def test_flat_then_named_then_flat_is_the_identity(network: FlatNetwork, stream: Stream) -> None:
    theta = randn(stream, network.num_parameters)
    assert torch.equal(torch.cat([part.flatten() for part in network.unflatten(theta).values()]), theta)


def test_flat_network_equals_the_module_of_the_same_parameters(network: FlatNetwork, stream: Stream) -> None:
    theta, images = network.initial(stream), randn(stream.at("images"), 5, 1, 4, 4, dtype=torch.float32)
    module = to_module(network, theta)
    assert torch.equal(network.flatten(module), theta)
    torch.testing.assert_close(network(theta, images), module(images))
    for ours, expected in zip(network.layers(theta, images), module.layers(images), strict=True):
        torch.testing.assert_close(ours, expected)


def test_initialisation_is_a_function_of_the_stream(network: FlatNetwork, stream: Stream) -> None:
    assert torch.equal(network.initial(stream.at(1)), network.initial(stream.at(1)))
    assert not torch.equal(network.initial(stream.at(1)), network.initial(stream.at(2)))


def test_layers_are_one_map_per_block_and_feed_the_classifier() -> None:
    network = ConvNet((3, 32, 32), 10, depth=3, width=8)
    images = torch.randn(2, 3, 32, 32)
    layers = network.layers(images)
    assert [tuple(layer.shape) for layer in layers] == [(2, 8, 16, 16), (2, 8, 8, 8), (2, 8, 4, 4)]
    torch.testing.assert_close(network.classifier(layers[-1].flatten(1)), network(images))
    assert FlatNetwork(partial(ConvNet, depth=3, width=8), (3, 32, 32), 10).layer_shapes() == [
        (8, 16, 16),
        (8, 8, 8),
        (8, 4, 4),
    ]


def test_mnist_is_padded_to_32_pixels_by_the_first_convolution() -> None:
    assert ConvNet((1, 28, 28), 10, width=8).layers(torch.zeros(1, 1, 28, 28))[0].shape == (1, 8, 16, 16)


@pytest.mark.parametrize("norm", ["instance", "group", "layer", "none"])
@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
def test_every_norm_and_pooling_classifies(norm: str, pooling: str) -> None:
    network = ConvNet((1, 8, 8), 3, depth=2, width=4, norm=norm, pooling=pooling)  # type: ignore[arg-type]
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    assert not list(network.buffers())


def test_instance_norm_removes_the_contrast_of_an_image() -> None:
    network = ConvNet((1, 8, 8), 3, depth=1, width=4)
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(network(images), network(7 * images), atol=1e-3, rtol=1e-3)


def test_too_deep_a_network_is_refused() -> None:
    with pytest.raises(ValueError, match="depth 4 halves images of 8x8 to nothing"):
        ConvNet((1, 8, 8), 10, depth=4)


def test_name_tells_the_architecture(network: FlatNetwork) -> None:
    assert network.name == "ConvNet(depth=1, width=4, norm=instance, pooling=avg)"


def test_a_network_that_mixes_its_images_is_recognised() -> None:
    class Mixing(ConvNet):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return logits - logits.mean(0)

    assert FlatNetwork(partial(Mixing, depth=1, width=4), (1, 4, 4), 3).mixes_images
    assert not FlatNetwork(partial(ConvNet, depth=1, width=4), (1, 4, 4), 3).mixes_images
