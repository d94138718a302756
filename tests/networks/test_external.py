"""Networks of torchvision and timm as students: pure, twice differentiable, with their own parameters."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.basics.shapes import ImageShape
from mim4dd_pl.engine.compiled import CompiledDerivatives
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.networks.batchnorm import BatchNorm
from mim4dd_pl.networks.external import External
from tests.conftest import randn
from tests.networks.test_networks import arguments, assert_close, autograds

CPU = torch.device("cpu")
RESNET: dict[str, Any] = {"model": "torchvision.models.resnet18", "layers": ["layer1", "layer4", "fc"]}
VIT: dict[str, Any] = {
    "model": "torchvision.models.VisionTransformer",
    "layers": ["encoder.layers.encoder_layer_0"],
    "settings": {
        **{"image_size": 16, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16},
        **{"dropout": 0.5, "attention_dropout": 0.5},
    },
}
# A few layers each, so that a sweep in float64 takes a moment.
SMALL: dict[str, tuple[dict[str, Any], ImageShape]] = {
    "ViT": (VIT, (3, 16, 16)),
    "MobileNet": (
        {
            "model": "torchvision.models.MobileNetV2",
            "layers": ["features.1"],
            "settings": {"width_mult": 0.1, "inverted_residual_setting": [[2, 16, 1, 1]], "dropout": 0.5},
        },
        (1, 8, 8),
    ),
    "ConvNeXt": (
        {
            "model": "tests.networks.test_external.convnext",
            "layers": ["features.1"],
            "settings": {"stochastic_depth_prob": 0.5},
        },
        (3, 8, 8),
    ),
}


def convnext(num_classes: int, stochastic_depth_prob: float) -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    blocks = [CNBlockConfig(8, None, 2)]
    model: nn.Module = ConvNeXt(blocks, stochastic_depth_prob, layer_scale=1.0, num_classes=num_classes)
    return model


def buffered(num_classes: int) -> nn.Module:
    module = nn.Linear(4, num_classes)
    module.register_buffer("mask", torch.ones(3))
    return nn.Sequential(module)


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest) -> FlatNetwork:
    settings, shape = SMALL[request.param]
    return FlatNetwork(partial(External, **settings), shape, 3)


def test_parameters_are_those_of_the_library() -> None:
    network = FlatNetwork(partial(External, **RESNET), (1, 32, 32), 10)
    with Stream(3).as_global():
        torchvisions = resnet18(num_classes=10)
    assert network.num_parameters == sum(parameter.numel() for parameter in torchvisions.parameters())
    assert torch.equal(network.initial(Stream(3)), network.flatten(torchvisions))
    assert network.layer_shapes() == [(64, 8, 8), (512, 1, 1), (10, 1, 1)]


def test_logits_are_those_of_the_library_on_grey_images_as_three_channels(stream: Stream) -> None:
    images = randn(stream.at("images"), 4, 1, 32, 32, dtype=torch.float32)
    with stream.as_global():
        ours = External((1, 32, 32), 10, **RESNET)
    with stream.as_global():
        torchvisions = resnet18(num_classes=10)
    torch.testing.assert_close(ours(images), torchvisions(images.repeat(1, 3, 1, 1)), rtol=1e-3, atol=1e-4)
    assert isinstance(ours.model.bn1, BatchNorm)
    assert not list(ours.buffers())


def test_a_sweep_is_autograds(small: FlatNetwork, stream: Stream) -> None:
    inputs = arguments(small, stream)
    assert_close(Derivatives(small).sweep(*inputs)[1:3], autograds(small, *inputs))


def test_what_is_compiled_is_the_same_sweep(
    small: FlatNetwork, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    inputs = arguments(small, stream)
    assert_close(CompiledDerivatives(small, 6, CPU).sweep(*inputs)[1:3], autograds(small, *inputs))


def test_dropout_and_stochastic_depth_are_off(small: FlatNetwork, stream: Stream) -> None:
    theta, images, _, _ = arguments(small, stream)
    assert torch.equal(small(theta[0], images[0]), small(theta[0], images[0]))


def test_maps_and_logits_come_from_one_pass(small: FlatNetwork, stream: Stream) -> None:
    theta, images, _, _ = arguments(small, stream)
    passes: list[int] = []
    with small._network.get_submodule("model").register_forward_hook(lambda *_: passes.append(1)):
        *maps, logits = small.layers(theta[0], images[0], logits=True)
    assert len(passes) == 1
    assert logits.equal(small(theta[0], images[0]))
    assert all(ours.equal(alone) for ours, alone in zip(maps, small.layers(theta[0], images[0]), strict=True))


def test_tokens_are_shown_as_a_column(stream: Stream) -> None:
    network = FlatNetwork(partial(External, **VIT), (3, 16, 16), 3)
    assert network.layer_shapes() == [(8, 17, 1)]  # a class token and 4x4 patches
    assert not network.mixes_images


def test_a_calibrated_network_classifies_each_image_alone(stream: Stream) -> None:
    network = FlatNetwork(partial(External, **SMALL["MobileNet"][0]), (1, 8, 8), 3)
    theta, images, _, _ = arguments(network, stream)
    statistics = network.calibrate(theta[0], [images[0]])
    together = network(theta[0], images[0], statistics)
    torch.testing.assert_close(together, network(theta[0], images[0]))
    torch.testing.assert_close(together[:1], network(theta[0], images[0, :1], statistics))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"layers": ["layer9"]},
            r"layers must name submodules of .*resnet18, got \['layer9'\]: choose among conv1, bn1",
        ),
        ({"layers": []}, r"layers must name submodules of .*resnet18, got \[\]"),
        ({"model": "torchvision.models.resnet19"}, "the path of an importable callable .*, got .*resnet19"),
        ({"model": "resnet18"}, "the path of an importable callable .*, got resnet18"),
        ({"settings": {"depth": 3}}, r"resnet18 cannot be built with \{'depth': 3\}: .*unexpected keyword"),
        ({"settings": {"weights": "DEFAULT"}}, "settings must not ask for pretrained weights, got weights"),
        ({"model": "tests.networks.test_external.buffered", "layers": ["0"]}, "has the buffer 0.mask"),
        (
            {"model": "torchvision.models.vit_b_16", "layers": ["encoder"]},
            "does not take images of .*Wrong image height",
        ),
    ],
)
def test_what_cannot_be_a_student_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        External((3, 32, 32), 10, **{**RESNET, **settings})


def test_what_is_not_used_or_no_map_is_refused() -> None:
    with pytest.raises(ValueError, match="a shows nothing: it is not used"):
        External((1, 2, 2), 3, "tests.networks.test_external.Unused", ["a"])
    with pytest.raises(ValueError, match="must return logits of shape \\(B, 2\\), got \\(2, 3\\) for B = 2"):
        External((1, 2, 2), 2, "tests.networks.test_external.Unused", ["b"])


class Unused(nn.Module):
    """Three logits, by one of its two layers."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.b(images.flatten(1))
        return logits


def test_a_timm_network_is_a_student(stream: Stream) -> None:
    pytest.importorskip("timm", reason="timm is not a dependency")
    settings = {"img_size": 16, "patch_size": 4, "depth": 1, "embed_dim": 8, "num_heads": 2, "drop_path_rate": 0.5}
    factory = partial(External, model="timm.models.VisionTransformer", layers=["blocks.0"], settings=settings)
    network = FlatNetwork(factory, (3, 16, 16), 3)
    assert network.layer_shapes() == [(8, 17, 1)]
    inputs = arguments(network, stream)
    assert_close(Derivatives(network).sweep(*inputs)[1:3], autograds(network, *inputs))
