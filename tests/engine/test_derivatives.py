"""Compiled derivatives equal plain ones, which equal autograd's; and when they are compiled at all."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA
from mim4dd_pl.engine import compiled as compiled_form
from mim4dd_pl.engine import derivatives as plain_form
from mim4dd_pl.engine.compiled import CompiledDerivatives, derivatives, worth_compiling
from mim4dd_pl.engine.derivatives import Derivatives, Work, chunk_size
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.engine.optimizers import SGD, Adam, Momentum
from mim4dd_pl.engine.unroll import ExactUnroll, FullGraphUnroll, InnerLoop
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.networks.resnet import ResNet18
from tests.conftest import randn

CPU = torch.device("cpu")
BATCH = 5


@pytest.fixture(scope="module")
def wide() -> FlatNetwork:
    """Wide enough for every convolution that the compiler gets in another form: 3 -> 16 -> 16 channels."""
    return FlatNetwork(partial(ConvNet, depth=2, width=16), (3, 8, 8), 4)


@pytest.fixture(scope="module")
def compiled(wide: FlatNetwork) -> CompiledDerivatives:
    """Compiled once for all tests of this file, in the double precision that they call it with."""
    return CompiledDerivatives(wide, BATCH, CPU)


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the compiler is given, run as it is."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def arguments(
    network: FlatNetwork, stream: Stream, networks: int = 1, batch: int = BATCH, soft: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """theta, images, labels (classes or soft ones) and a cotangent in float64."""
    theta = torch.stack([network.initial(stream.at("theta", k)).double() for k in range(networks)])
    images = randn(stream.at("images"), networks, batch, *network.image_shape)
    labels = (torch.arange(networks * batch) % network.num_classes).view(networks, batch)
    if soft:
        labels = randn(stream.at("labels"), networks, batch, network.num_classes).softmax(2)
    return theta, images, labels, randn(stream.at("cotangent"), *theta.shape)


def assert_close(ours: tuple[Tensor | None, ...], oracle: tuple[Tensor | None, ...], tolerance: float = 1e-10) -> None:
    for part, expected in zip(ours, oracle, strict=True):
        if part is None or expected is None:
            assert part is expected
            continue
        assert part.shape == expected.shape
        assert (part - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("soft", [False, True])
def test_a_sweep_is_the_derivative_of_gradient_times_cotangent(
    network: FlatNetwork, stream: Stream, soft: bool
) -> None:
    theta, images, labels, cotangent = arguments(network, stream, networks=2, soft=soft)
    inputs = [part.requires_grad_() for part in (theta, images, labels) if part.is_floating_point()]
    losses = torch.stack([torch.nn.functional.cross_entropy(network(theta[k], images[k]), labels[k]) for k in range(2)])
    (g,) = torch.autograd.grad(losses.sum(), theta, create_graph=True)
    s = (g * cotangent).sum(1)
    plain = Derivatives(network)
    torch.testing.assert_close(plain.loss(theta, images, labels), losses)
    torch.testing.assert_close(plain.gradient(theta, images, labels), g.detach())
    expected = (s.detach(), *torch.autograd.grad(s.sum(), inputs), *([] if soft else [None]))
    assert_close(plain.sweep(theta, images, labels, cotangent), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_compiled_derivatives_equal_plain_ones(
    wide: FlatNetwork, compiled: CompiledDerivatives, stream: Stream, caplog: pytest.LogCaptureFixture, soft: bool
) -> None:
    theta, images, labels, cotangent = arguments(wide, stream, soft=soft)
    with caplog.at_level(logging.WARNING, "mim4dd_pl"):
        gradient = compiled.gradient(theta, images, labels)
        sweep = compiled.sweep(theta, images, labels, cotangent)
    assert not [record for record in caplog.records if record.name.startswith("mim4dd_pl")]  # it did compile
    plain = Derivatives(wide)
    assert not torch.equal(gradient, plain.gradient(theta, images, labels))  # and is another computation
    assert_close((gradient,), (plain.gradient(theta, images, labels),))
    assert_close(sweep, plain.sweep(theta, images, labels, cotangent))


@pytest.mark.parametrize("name", ["features", "layers and logits"])
def test_compiled_features_and_their_gradient_on_the_images_equal_plain_ones(
    wide: FlatNetwork, compiled: CompiledDerivatives, stream: Stream, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    theta, images, _, _ = arguments(wide, stream, batch=34)  # two chunks of 17
    pixels = images[0].requires_grad_()
    maps, given = wide.layers(theta[0], pixels), wide(theta[0], pixels)
    whole = {
        "features": (maps[-1].flatten(1),),
        "logits": (given,),
        "layers": maps,
        "layers and logits": (*maps, given),
    }

    def seen(form: Derivatives) -> tuple[Tensor, ...]:
        if name.startswith("layers"):
            return form.layers(theta[0], pixels, with_logits="logits" in name)
        return (form.features(theta[0], pixels) if name == "features" else form.logits(theta[0], pixels),)

    cotangents = [randn(stream.at("cotangent", k), *part.shape) for k, part in enumerate(whole[name])]
    with caplog.at_level(logging.WARNING, "mim4dd_pl"):
        for form in (compiled, Derivatives(wide)):
            values = seen(form)
            assert_close(values, whole[name])
            ours, oracle = (
                torch.autograd.grad(parts, pixels, cotangents, retain_graph=True) for parts in (values, whole[name])
            )
            assert_close(ours, oracle)
            assert_close(
                torch.autograd.grad(values[-1].sum(), pixels),
                torch.autograd.grad(whole[name][-1].sum(), pixels, retain_graph=True),
            )
            with torch.no_grad():
                assert_close(seen(form), whole[name])
    assert not [record for record in caplog.records if record.name.startswith("mim4dd_pl")]  # it did compile


def test_half_precision_is_near_single_precision_and_gives_float32(wide: FlatNetwork, stream: Stream) -> None:
    theta, images, labels, _ = arguments(wide, stream)
    theta, images = theta.float(), images.float()
    half, plain = Derivatives(wide.in_half_precision()), Derivatives(wide)
    for ours, exact in (
        (half.gradient(theta, images, labels), plain.gradient(theta, images, labels)),
        (half.features(theta[0], images[0]), plain.features(theta[0], images[0])),
        (half.logits(theta[0], images[0]), plain.logits(theta[0], images[0])),
    ):
        assert ours.dtype == torch.float32
        assert 0 < (ours - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("optimizer", [SGD(), Momentum(0.9), Adam(eps=1e-3)], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("window", [None, range(1, 3)], ids=["whole", "truncated"])
def test_a_compiled_unroll_equals_the_full_graph(
    wide: FlatNetwork, compiled: CompiledDerivatives, stream: Stream, optimizer: Any, window: range | None
) -> None:
    theta, images, labels, cotangent = arguments(wide, stream)
    augment, student_lr = DSA(), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    inputs = (images[0].requires_grad_(), labels[0], student_lr, theta.requires_grad_())
    learned = [part for part in inputs if part.requires_grad]

    def minibatch(images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        return augment(images, stream.at("augment", step))[None], labels[None]

    def gradients(unroll: ExactUnroll | FullGraphUnroll, engine: Derivatives) -> tuple[Tensor, ...]:
        student = unroll(InnerLoop(engine, optimizer, minibatch, 4, window), *inputs)
        return torch.autograd.grad((student * cotangent).sum(), learned, materialize_grads=True, allow_unused=True)

    assert_close(gradients(ExactUnroll(), compiled), gradients(FullGraphUnroll(), Derivatives(wide)))


def test_a_minibatch_of_another_size_takes_the_plain_way(
    wide: FlatNetwork, compiled: CompiledDerivatives, stream: Stream
) -> None:
    theta, images, labels, cotangent = arguments(wide, stream, batch=BATCH - 2)
    plain = Derivatives(wide)
    assert torch.equal(compiled.gradient(theta, images, labels), plain.gradient(theta, images, labels))
    sweep = compiled.sweep(theta, images, labels, cotangent)
    assert_close(sweep, plain.sweep(theta, images, labels, cotangent), tolerance=0.0)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("kind", [Derivatives, lambda network: CompiledDerivatives(network, 96, CPU)])
def test_a_large_minibatch_in_chunks_is_the_whole(
    network: FlatNetwork,
    stream: Stream,
    kind: Callable[[FlatNetwork], Derivatives],
    soft: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theta, images, labels, cotangent = arguments(network, stream, networks=2, batch=96, soft=soft)
    engine, sizes, losses = kind(network), [], plain_form.network_losses

    def spy(network: FlatNetwork, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        sizes.append(images.shape[1])
        return losses(network, theta, images, labels)

    for module in (plain_form, compiled_form):
        monkeypatch.setattr(module, "network_losses", spy)
    ours = (engine.gradient(theta, images, labels), *engine.sweep(theta, images, labels, cotangent))
    assert sizes == [48] * 4
    network.mixes_images = True
    plain = Derivatives(network)
    assert_close(ours, (plain.gradient(theta, images, labels), *plain.sweep(theta, images, labels, cotangent)))
    assert sizes[4:] == [96] * 2


def test_chunks_divide_their_minibatch() -> None:
    sizes = {batch: chunk_size(batch, CPU) for batch in (10, 64, 100, 101, 125, 200, 256, 500)}
    assert sizes == {10: 10, 64: 64, 100: 50, 101: 101, 125: 25, 200: 50, 256: 64, 500: 50}
    assert chunk_size(500, torch.device("cuda")) == 500


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("settings", [{"norm": "group"}, {"norm": "layer"}, {"norm": "none"}, {"pooling": "max"}])
@pytest.mark.parametrize("networks", [1, 2])
def test_what_is_compiled_equals_the_plain_derivatives(settings: dict[str, Any], networks: int, stream: Stream) -> None:
    network = FlatNetwork(partial(ConvNet, depth=2, width=16, **settings), (3, 8, 8), 4)
    theta, images, labels, cotangent = arguments(network, stream, networks)
    ours, plain = CompiledDerivatives(network, BATCH, CPU), Derivatives(network)
    assert_close((ours.gradient(theta, images, labels),), (plain.gradient(theta, images, labels),))
    assert_close(ours.sweep(theta, images, labels, cotangent), plain.sweep(theta, images, labels, cotangent))


@pytest.mark.usefixtures("uncompiled")
def test_in_single_precision_a_sweep_of_the_standard_network_keeps_three_digits(stream: Stream) -> None:
    """ConvNetD3-128 on CIFAR-10 shapes against double precision: the form that is compiled beside the plain one."""
    network = FlatNetwork(partial(ConvNet, depth=3, width=128), (3, 32, 32), 10)
    theta, images, labels, cotangent = arguments(network, stream)
    exact = Derivatives(network).sweep(theta, images, labels, cotangent)
    single = (theta.float(), images.float(), labels, cotangent.float())
    for engine in (Derivatives(network), CompiledDerivatives(network, BATCH, CPU)):
        assert_close(
            tuple(part if part is None else part.double() for part in engine.sweep(*single)), exact, tolerance=1e-3
        )


def refusing(error: Exception) -> Callable[..., Any]:
    """A compiler whose product fails at the third call, and for all but gradients at the first."""

    def compile(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        calls = [] if getattr(function, "__name__", "view") == "gradient" else [0, 0]

        def call(*arguments: Tensor) -> Any:
            calls.append(0)
            if len(calls) == 3:
                raise error
            return function(*arguments)

        return call

    return compile


def test_what_does_not_compile_runs_plainly_after_one_warning(
    wide: FlatNetwork, stream: Stream, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", refusing(RuntimeError("no C++ compiler\nand a long story")))
    theta, images, labels, cotangent = arguments(wide, stream)
    engine, plain = CompiledDerivatives(wide, BATCH, CPU), Derivatives(wide)
    with caplog.at_level(logging.WARNING, "mim4dd_pl"):
        for _ in range(2):
            ours = engine.sweep(theta, images, labels, cotangent)
            assert_close(ours, plain.sweep(theta, images, labels, cotangent), tolerance=0.0)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == ["no C++ compiler"]
    assert "\n" not in caplog.records[0].getMessage()
    pixels = images[0].requires_grad_()
    assert torch.equal(engine.features(theta[0], pixels), plain.features(theta[0], pixels))
    # The gradient, which does compile, stays compiled, as it would in a run that starts here.
    assert not torch.equal(engine.gradient(theta, images, labels), plain.gradient(theta, images, labels))


@pytest.mark.parametrize(("error", "calls"), [(RuntimeError("later"), 2), (torch.OutOfMemoryError("too large"), 0)])
def test_what_fails_though_it_compiled_is_an_error(
    wide: FlatNetwork, stream: Stream, monkeypatch: pytest.MonkeyPatch, error: Exception, calls: int
) -> None:
    monkeypatch.setattr(torch, "compile", refusing(error))
    theta, images, labels, cotangent = arguments(wide, stream)
    engine = CompiledDerivatives(wide, BATCH, CPU)
    for _ in range(calls):
        engine.gradient(theta, images, labels)
    with pytest.raises(type(error), match=str(error)):
        engine.gradient(theta, images, labels) if calls else engine.sweep(theta, images, labels, cotangent)


@pytest.mark.parametrize("kind", [Derivatives, lambda network: CompiledDerivatives(network, BATCH, CPU)])
@pytest.mark.usefixtures("uncompiled")
def test_a_direct_sweep_leaves_out_the_way_through_theta(
    network: FlatNetwork, stream: Stream, kind: Callable[[FlatNetwork], Derivatives]
) -> None:
    inputs = arguments(network, stream)
    whole, direct = kind(network).sweep(*inputs), kind(network).sweep(*inputs, along_theta=False)
    assert_close((direct.s, direct.images), (whole.s, whole.images))
    assert not direct.theta.any()
    assert whole.theta.any()


def test_auto_compiles_long_work_only(wide: FlatNetwork) -> None:
    """It decides by the recipe: neither the clock nor the machine takes part."""
    short, long = Work(BATCH, 1_000, 1_000), Work(BATCH, 100_000, 100_000)
    assert [worth_compiling(wide, "auto", work) for work in (short, long)] == [False, True]
    assert worth_compiling(wide, True, short)
    # Compiling takes its time for each layer: what pays for a shallow network does not for a deep one.
    deep = FlatNetwork(partial(ResNet18, width=4), (3, 8, 8), 4)
    seconds = 30 * wide.num_parametric_modules  # of plain work
    shallow, same = (Work(BATCH, round(seconds / Work(BATCH, 1).seconds(network))) for network in (wide, deep))
    assert [wide.num_parametric_modules, deep.num_parametric_modules] == [5, 41]
    assert worth_compiling(wide, "auto", shallow)
    assert not worth_compiling(deep, "auto", same)
    assert not worth_compiling(wide, False, long)
    assert not any(worth_compiling(wide, choice, long._replace(one_graph=True)) for choice in ("auto", True))
    assert type(derivatives(wide, True, BATCH, CPU)) is CompiledDerivatives
    assert type(derivatives(wide, False, BATCH, CPU)) is Derivatives


def test_estimated_work_grows_with_the_batch_and_the_calls(wide: FlatNetwork) -> None:
    # Two convolutions of 3 -> 16 channels at 8x8 and 16 -> 16 at 4x4, one layer of 64 -> 4; two operations each.
    forward = 2 * (9 * 3 * 16 * 64 + 9 * 16 * 16 * 16 + 64 * 4)
    assert Work(7, 10, 0).seconds(wide) == pytest.approx(10 * (1e-3 + 3 * 7 * forward / 1e11))
    assert Work(7, 0, 10).seconds(wide) == pytest.approx(10 * (3e-3 + 8 * 7 * forward / 1e11))
