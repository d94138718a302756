"""Networks show their layers, and are pure functions of one vector."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.engine.compiled import CompiledDerivatives
from mim4dd_pl.engine.derivatives import Derivatives, Work
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.networks.alexnet import AlexNet
from mim4dd_pl.networks.base import NetworkFactory
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.networks.resnet import ResNet18
from mim4dd_pl.networks.small import MLP, LeNet
from mim4dd_pl.networks.vgg import VGG11
from mim4dd_pl.networks.vit import ViT
from tests.conftest import randn, to_module

CPU = torch.device("cpu")
FAMILIES: dict[str, tuple[NetworkFactory, list[ImageShape]]] = {
    # A small one of each, and the feature maps that it shows of 2x16x16 images.
    "ConvNet": (partial(ConvNet, width=4), [(4, 8, 8), (4, 4, 4)]),
    "ConvNet batch": (partial(ConvNet, width=4, norm="batch"), [(4, 8, 8), (4, 4, 4)]),
    "ConvNet sigmoid": (partial(ConvNet, width=4, activation="sigmoid", pooling="max"), [(4, 8, 8), (4, 4, 4)]),
    "ConvNet leaky_relu": (partial(ConvNet, width=4, activation="leaky_relu"), [(4, 8, 8), (4, 4, 4)]),
    "AlexNet": (partial(AlexNet, width=4), [(4, 8, 8), (6, 4, 4), (8, 4, 4), (6, 4, 4), (6, 2, 2)]),
    "VGG11": (partial(VGG11, width=2), [(2, 16, 16), (4, 8, 8), (8, 4, 4), (16, 2, 2), (16, 1, 1)]),
    "VGG11 batch": (partial(VGG11, width=2, norm="batch"), [(2, 16, 16), (4, 8, 8), (8, 4, 4), (16, 2, 2), (16, 1, 1)]),
    "ResNet18": (partial(ResNet18, width=2), [(2, 16, 16), (4, 8, 8), (8, 4, 4), (16, 2, 2)]),
    "ResNet18 batch": (partial(ResNet18, width=2, norm="batch"), [(2, 16, 16), (4, 8, 8), (8, 4, 4), (16, 2, 2)]),
    "LeNet": (LeNet, [(6, 6, 6), (16, 1, 1), (120, 1, 1), (84, 1, 1)]),
    "MLP": (partial(MLP, width=8), [(8, 1, 1), (8, 1, 1)]),
    "ViT": (partial(ViT, depth=2, dim=8, heads=2), [(8, 4, 4), (8, 4, 4)]),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> FlatNetwork:
    """Each small network on 2x16x16 images of 3 classes."""
    return FlatNetwork(FAMILIES[request.param][0], (2, 16, 16), 3)


@pytest.mark.parametrize("name", FAMILIES)
def test_layers_are_one_map_per_block(name: str) -> None:
    factory, shapes = FAMILIES[name]
    network = FlatNetwork(factory, (2, 16, 16), 3)
    assert network.layer_shapes() == shapes
    assert [tuple(layer.shape) for layer in network.layers(network.initial(Stream(0)), torch.randn(2, 2, 16, 16))] == [
        (2, *shape) for shape in shapes
    ]


def test_maps_and_logits_come_from_one_pass(family: FlatNetwork, stream: Stream) -> None:
    theta, images = family.initial(stream), randn(stream, 4, 2, 16, 16, dtype=torch.float32)
    passes: list[int] = []
    with family._network.get_submodule("blocks.0").register_forward_hook(lambda *_: passes.append(1)):
        *maps, logits = family.layers(theta, images, logits=True)
    assert len(passes) == 1
    assert logits.equal(family(theta, images))
    assert all(ours.equal(alone) for ours, alone in zip(maps, family.layers(theta, images), strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_only_batch_norm_mixes_the_images_of_a_batch(name: str, stream: Stream) -> None:
    network = FlatNetwork(FAMILIES[name][0], (2, 16, 16), 3)
    theta, images = network.initial(stream), randn(stream, 4, 2, 16, 16, dtype=torch.float32)
    alone = torch.cat([network(theta, image[None]) for image in images])
    assert torch.allclose(network(theta, images), alone, atol=1e-4) == ("batch" not in name)
    assert network.mixes_images == ("batch" in name)
    assert not list(network.factory((2, 16, 16), 3).buffers())


def arguments(network: FlatNetwork, stream: Stream, students: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """theta, six images, labels and a cotangent for each student, in float64."""
    theta = torch.stack([network.initial(stream.at("theta", k)).double() for k in range(students)])
    images = randn(stream.at("images"), students, 6, *network.image_shape)
    labels = (torch.arange(students * 6) % network.num_classes).view(students, 6)
    return theta, images, labels, randn(stream.at("cotangent"), *theta.shape)


def autograds(network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor, cotangent: Tensor) -> list[Tensor]:
    """The derivative of <gradient, cotangent>, one student after another."""
    theta, images = theta.clone().requires_grad_(), images.clone().requires_grad_()
    losses = [cross_entropy(network(*pair), y) for *pair, y in zip(theta, images, labels, strict=True)]
    (g,) = torch.autograd.grad(torch.stack(losses).sum(), theta, create_graph=True)
    return list(torch.autograd.grad((g * cotangent).sum(), (theta, images)))


def assert_close(ours: Any, oracle: Any) -> None:
    for part, expected in zip(ours, oracle, strict=True):
        assert (part - expected).norm() <= 1e-10 * expected.norm()


@pytest.mark.parametrize("students", [1, 2])
def test_a_sweep_is_autograds(family: FlatNetwork, students: int, stream: Stream) -> None:
    inputs = arguments(family, stream, students)
    assert_close(Derivatives(family).sweep(*inputs)[1:3], autograds(family, *inputs))


@pytest.mark.parametrize("students", [1, 2])
def test_what_is_compiled_is_the_same_sweep(
    family: FlatNetwork, students: int, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the compiler is given, run as it is."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    inputs = arguments(family, stream, students)
    assert_close(CompiledDerivatives(family, 6, CPU).sweep(*inputs)[1:3], autograds(family, *inputs))


def test_a_small_step_along_the_gradient_lowers_the_loss(family: FlatNetwork, stream: Stream) -> None:
    theta, images, labels, _ = arguments(family, stream)
    derivatives, before = Derivatives(family), float("inf")
    for _ in range(3):
        loss, gradient = float(derivatives.loss(theta, images, labels)), derivatives.gradient(theta, images, labels)
        assert loss < before
        before, theta = loss, theta - 1e-2 * gradient / gradient.norm()


def test_work_counts_the_operations_of_every_network(family: FlatNetwork) -> None:
    assert Work(1000, 100).seconds(family) > 100 * 1e-3


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64, 128])
@pytest.mark.parametrize("kind", [ConvNet, AlexNet, VGG11, ResNet18, LeNet, MLP, ViT])
def test_every_network_takes_every_size_of_the_field(kind: Any, side: int) -> None:
    small: dict[str, int] = {"LeNet": {}, "ViT": {"dim": 4, "heads": 1, "depth": 1}}.get(kind.__name__, {"width": 2})
    if kind is LeNet and side < 16:
        with pytest.raises(ValueError, match="LeNet needs images of at least 16x16, got 8x8: take ConvNet or MLP"):
            kind((1, side, side), 5)
        return
    channels = 1 if side < 32 else 3
    assert kind((channels, side, side), 5, **small)(torch.randn(2, channels, side, side)).shape == (2, 5)


@pytest.mark.parametrize(
    ("factory", "shape", "count"),
    [
        (partial(ConvNet, depth=3), (3, 32, 32), 320_010),  # as the field's papers state it
        (
            partial(ConvNet, depth=2, width=32),
            (1, 8, 8),
            320 + 64 + 9248 + 64 + 1290,
        ),  # convolution, norm, twice; linear
        (partial(ResNet18, norm="batch"), (3, 32, 32), 11_173_962),  # of the usual CIFAR-10 ResNet18
        (LeNet, (1, 28, 28), 61_706),  # LeNet-5 with fully connected second convolution
        # Convolutions 5x5, 5x5, 3x3, 3x3, 3x3 with biases; linear layer on 192 maps of 4x4.
        (
            AlexNet,
            (3, 32, 32),
            (75 + 1) * 128 + (3200 + 1) * 192 + (1728 + 1) * 256 + (2304 + 1) * 192 + (1728 + 1) * 192 + 3073 * 10,
        ),
        # 3x3 convolutions with bias and norm, c -> k: 9 c k + 3 k.
        (
            VGG11,
            (3, 32, 32),
            sum(
                9 * c * k + 3 * k
                for c, k in [(3, 64), (64, 128), (128, 256), (256, 256), (256, 512), (512, 512), (512, 512), (512, 512)]
            )
            + 513 * 10,
        ),
        (MLP, (1, 28, 28), 785 * 128 + 129 * 128 + 129 * 10),
        # Patches, positions; six blocks of two norms, qkv, mix and 4x MLP; norm and linear layer.
        (
            ViT,
            (3, 32, 32),
            49 * 192 + 64 * 192 + 6 * (4 * 192 + 193 * 576 + 193 * 192 + 193 * 768 + 769 * 192) + 2 * 192 + 193 * 10,
        ),
    ],
)
def test_parameter_count(factory: NetworkFactory, shape: ImageShape, count: int) -> None:
    assert FlatNetwork(factory, shape, 10).num_parameters == count


def test_flat_then_named_then_flat_is_the_identity(family: FlatNetwork, stream: Stream) -> None:
    theta = randn(stream, family.num_parameters)
    assert torch.equal(torch.cat([part.flatten() for part in family.unflatten(theta).values()]), theta)


def test_flat_network_equals_the_module_of_the_same_parameters(family: FlatNetwork, stream: Stream) -> None:
    theta, images = family.initial(stream), randn(stream.at("images"), 5, 2, 16, 16, dtype=torch.float32)
    module = to_module(family, theta)
    assert torch.equal(family.flatten(module), theta)
    torch.testing.assert_close(family(theta, images), module(images))
    for ours, expected in zip(family.layers(theta, images), module.layers(images), strict=True):
        torch.testing.assert_close(ours, expected)


def test_initialisation_is_a_function_of_the_stream(family: FlatNetwork, stream: Stream) -> None:
    assert torch.equal(family.initial(stream.at(1)), family.initial(stream.at(1)))
    assert not torch.equal(family.initial(stream.at(1)), family.initial(stream.at(2)))


def test_the_last_map_feeds_the_classifier() -> None:
    network, images = ConvNet((3, 32, 32), 10, width=8), torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(network.classifier(network.layers(images)[-1].flatten(1)), network(images))


@pytest.mark.parametrize(("side", "depth"), [(4, 1), (8, 1), (16, 2), (28, 3), (32, 3), (64, 4), (128, 5)])
def test_depth_follows_the_image_size(side: int, depth: int) -> None:
    network = ConvNet((1, side, side), 2, width=4)
    assert network.extra_repr().startswith(f"depth={depth}, ")
    assert network.layers(torch.zeros(1, 1, side, side))[-1].shape[2:] == ((4, 4) if side > 4 else (2, 2))


def test_mnist_is_padded_to_32_pixels_by_the_first_convolution() -> None:
    for kind in (ConvNet, AlexNet, VGG11):
        assert kind((1, 28, 28), 10, width=8).layers(torch.zeros(1, 1, 28, 28))[0].shape == (1, 8, 16, 16)


@pytest.mark.parametrize("norm", ["instance", "group", "batch", "layer", "none"])
@pytest.mark.parametrize("pooling", ["avg", "max", "none"])
def test_every_norm_and_pooling_classifies(norm: str, pooling: str) -> None:
    network = ConvNet((1, 8, 8), 3, depth=2, width=4, norm=norm, pooling=pooling)  # type: ignore[arg-type]
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 3)


def test_instance_norm_removes_the_contrast_of_an_image() -> None:
    network = ConvNet((1, 8, 8), 3, depth=1, width=4)
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(network(images), network(7 * images), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("kind", "shape", "settings", "message"),
    [
        (ConvNet, (1, 8, 8), {"depth": 4}, "depth 4 halves images of 8x8 to nothing"),
        (ConvNet, (1, 8, 8), {"depth": 0}, "depth must be at least 1, got 0"),
        (VGG11, (1, 8, 8), {"norm": "group", "width": 6}, "width must be a multiple of 4 for norm group, got 6"),
        (MLP, (1, 8, 8), {"width": 0}, "width must be at least 1, got 0"),
        (AlexNet, (1, 8, 8), {"width": 3}, "width must be even, got 3"),
        (AlexNet, (1, 4, 4), {}, "AlexNet needs images of at least 8x8, got 4x4"),
        (ViT, (1, 8, 8), {"patch": 3}, "patch must divide the sides of the images, got 3 for 8x8: set a divisor"),
        (ViT, (1, 8, 8), {"heads": 5}, "ViT needs .* a dim that heads divides, got patch=4, depth=6, dim=192, heads=5"),
    ],
)
def test_settings_that_make_no_network_are_refused(
    kind: Any, shape: ImageShape, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        kind(shape, 10, **settings)


def test_name_tells_the_architecture(network: FlatNetwork) -> None:
    assert network.name == "ConvNet(depth=1, width=4, norm=instance, pooling=avg)"
    assert FlatNetwork(partial(ResNet18, width=2), (1, 8, 8), 2).name == "ResNet18(width=2, norm=instance)"


def test_a_network_that_mixes_its_images_is_recognised() -> None:
    class Mixing(ConvNet):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            return logits - logits.mean(0)

    assert FlatNetwork(partial(Mixing, depth=1, width=4), (1, 4, 4), 3).mixes_images
