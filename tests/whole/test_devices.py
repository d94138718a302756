"""Laws of the computation on every device at hand, and that no tensor stays behind on the CPU.

Tests over ``device`` run on the CPU everywhere and on CUDA where there is a device (``make gpu``). Where there is none,
fake CUDA tensors, which have a device and no data, find what is mixed; they go forward only.
"""

import json
import threading
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mim4dd_pl.app.cli import main
from mim4dd_pl.basics.machine import allow_tf32
from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.augment import DSA, OPERATIONS
from mim4dd_pl.data.normalization import Normalization, Whitening
from mim4dd_pl.data.sets import ImageSet, InMemory
from mim4dd_pl.engine.compiled import CompiledDerivatives
from mim4dd_pl.engine.derivatives import Derivatives, Sweep
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.engine.optimizers import SGD, Adam, InnerOptimizer, Momentum
from mim4dd_pl.engine.unroll import ExactUnroll, FullGraphUnroll, InnerLoop, Unroll
from mim4dd_pl.information.critics import ClassMeanCritic, Critic, InfoNCECritic, PrototypeCritic
from mim4dd_pl.information.term import InformationTerm
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.objectives.sampling import Chunks
from mim4dd_pl.population.training import Training, train
from tests.conftest import CONFIGS, randn, tiny_overlay

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
BATCH = 5

NEEDS_CUDA = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
on_every_device = pytest.mark.parametrize("device", [CPU, pytest.param(CUDA, marks=NEEDS_CUDA)], ids=["cpu", "cuda"])


# --- the same numbers by every way


@pytest.fixture(autouse=True)
def whole_mantissa() -> None:
    allow_tf32(False)


@pytest.fixture(scope="module")
def wide() -> FlatNetwork:
    """Wide enough for every convolution that the compiler gets in another form: 3 -> 16 -> 16 channels."""
    return FlatNetwork(partial(ConvNet, depth=2, width=16), (3, 8, 8), 4)


def compiled(network: FlatNetwork, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> CompiledDerivatives:
    """On CUDA compiled and captured; on the CPU what the compiler is given (compiled in tests/test_derivatives.py)."""
    if device.type == "cpu":
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    return CompiledDerivatives(network, BATCH, device)


Unrolled = tuple[Tensor, Tensor, Tensor]


def unrolled(
    unroll: Unroll, engine: Derivatives, device: torch.device, steps: int, dtype: torch.dtype = torch.float32
) -> Unrolled:
    """theta_N of one student with its graph, and the images and student lr that it came from."""
    stream, network = Stream(0).at("devices"), engine.network
    start = network.initial(stream.at("theta"))[None].to(device, dtype)
    images = randn(stream.at("images"), BATCH, *network.image_shape).to(device, dtype).requires_grad_()
    labels = (torch.arange(BATCH) % network.num_classes).to(device)
    student_lr = torch.tensor(0.1, dtype=dtype, device=device, requires_grad=True)
    augment = DSA()

    def augmented(images: Tensor, stream: Stream, step: int) -> Tensor:
        return augment(images, stream.at(step))

    loop = InnerLoop(engine, SGD(), Chunks(BATCH, [stream.at("loop")], augmented), steps)
    return unroll(loop, images, labels, student_lr, start), images, student_lr


def gradients(student: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    """theta_N, and the gradients of <theta_N, c> along what it came from."""
    cotangent = randn(Stream(0).at("cotangent"), *student.shape).to(student)
    return student.detach(), *torch.autograd.grad((student * cotangent).sum(), inputs)


def assert_close(ours: tuple[Tensor, ...], oracle: tuple[Tensor, ...], tolerance: float) -> None:
    for part, expected in zip(ours, oracle, strict=True):
        assert (part.double() - expected.double()).norm() <= tolerance * expected.double().norm()


@on_every_device
@pytest.mark.parametrize(("dtype", "steps", "tolerance"), [(torch.float64, 4, 1e-10), (torch.float32, 1, 1e-3)])
def test_compiled_plain_and_full_graph_give_the_same_gradients(
    wide: FlatNetwork,
    device: torch.device,
    dtype: torch.dtype,
    steps: int,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In double precision to rounding, in single precision over one step; three calls, as a graph replays the third."""
    plain, fast = Derivatives(wide), compiled(wide, device, monkeypatch)
    oracle = gradients(*unrolled(FullGraphUnroll(), plain, device, steps, dtype))
    for engine in (plain, fast, fast, fast):
        assert_close(gradients(*unrolled(ExactUnroll(), engine, device, steps, dtype)), oracle, tolerance)
    assert fast._proven == {"gradient", "sweep"}  # it did compile


@on_every_device
def test_results_of_a_call_outlive_the_next_call(
    wide: FlatNetwork, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph writes into its own memory; what a caller holds must not change under it."""
    engine = compiled(wide, device, monkeypatch)
    theta = torch.stack([wide.initial(Stream(k)) for k in range(3)]).to(device)
    images = randn(Stream(0), 1, BATCH, *wide.image_shape).float().to(device)
    labels = torch.zeros(1, BATCH, dtype=torch.int64, device=device)
    held = [engine.gradient(theta[k : k + 1], images, labels) for k in (0, 1, 2)]
    again = [engine.gradient(theta[k : k + 1], images, labels) for k in (0, 1, 2)]
    for first, second in zip(held, again, strict=True):
        torch.testing.assert_close(first, second)


@on_every_device
@pytest.mark.parametrize("compiles", [False, True], ids=["plain", "compiled"])
def test_a_population_of_three_is_three_single_trainings(
    network: FlatNetwork, device: torch.device, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = compiled(network, device, monkeypatch) if compiles else Derivatives(network)
    streams = [Stream(number) for number in range(3)]
    theta = torch.stack([network.initial(stream) for stream in streams]).double().to(device)
    data = InMemory(randn(Stream(9), 12, 1, 4, 4).to(device), (torch.arange(12) % 3).to(device))
    training = Training(2, batch_size=5, lr=0.1, momentum=0.9, augment=DSA())

    def trained(rows: slice) -> Tensor:
        chosen = streams[rows]
        (last,) = deque(train(engine, theta[rows], [data] * len(chosen), training, chosen), maxlen=1)
        return last

    alone = torch.cat([trained(slice(k, k + 1)) for k in range(3)])
    torch.testing.assert_close(trained(slice(0, 3)), alone, rtol=1e-9, atol=1e-11)


@on_every_device
def test_memory_of_an_exact_unroll_grows_by_its_parameters_alone(wide: FlatNetwork, device: torch.device) -> None:
    """Bytes that autograd keeps of the forward pass: theta_0 .. theta_N and what does not depend on N."""

    def kept(steps: int) -> int:
        student, *_ = unrolled(ExactUnroll(), Derivatives(wide), device, steps)
        saved = [tensor.untyped_storage() for tensor in cast(Any, student.grad_fn).saved_tensors]
        return sum({storage.data_ptr(): storage.nbytes() for storage in saved}.values())

    assert kept(30) - kept(10) == 20 * 4 * wide.num_parameters


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_peak_on_a_cuda_device_is_flat_in_the_number_of_steps(wide: FlatNetwork) -> None:
    def peak(steps: int) -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients(*unrolled(ExactUnroll(), Derivatives(wide), CUDA, steps))
        return torch.cuda.max_memory_allocated() - before

    peak(2)
    assert peak(40) - peak(10) <= 30 * 4 * (wide.num_parameters + 1024)


def test_the_compilers_limit_holds_in_every_thread(wide: FlatNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its settings are a thread's own, and the backward pass on a CUDA device has a thread of its own."""
    engine, limits = compiled(wide, CPU, monkeypatch), []
    theta, images = wide.initial(Stream(0))[None], torch.zeros(1, BATCH, *wide.image_shape)

    def call() -> None:
        engine.gradient(theta, images, torch.zeros(1, BATCH, dtype=torch.int64))
        limits.append(torch._dynamo.config.recompile_limit)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert limits[0] >= 256


@on_every_device
def test_a_run_goes_from_nothing_to_its_table(
    device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts, two segments a step with the term, students; compiled and captured on CUDA."""
    monkeypatch.chdir(tmp_path)
    tiny_overlay(tmp_path / "tiny.yaml", steps=2)
    on_cuda = device.type == "cuda"
    overlays = [CONFIGS / "with/mutual_information.yaml", tmp_path / "tiny.yaml"]
    settings = [
        f"--trainer.accelerator={'gpu' if on_cuda else 'cpu'}",
        f"--model.compile={'true' if on_cuda else 'false'}",
        "--model.segments_per_step=2",
    ]
    recipe = [f"--config={path}" for path in (CONFIGS / "distill/digits.yaml", *overlays)]
    assert main(["fit", *recipe, *settings]) == 0
    results = json.loads((tmp_path / "checkpoints/digits/version_0/results.json").read_text())
    assert results["machine"].endswith(torch.cuda.get_device_name() if on_cuda else ", cpu")
    assert 0 < results["peak_memory_gib"] < 64
    assert results["test"][0]["trained_on"].startswith("distilled")


# --- nothing stays behind on the CPU


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    """Fake CUDA tensors; mixing them with the CPU's raises as it would on a device."""
    with torch.backends.cudnn.flags(enabled=False), FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        yield mode


@pytest.mark.usefixtures("fake")
def test_fake_tensors_find_what_is_mixed() -> None:
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(2, device=CUDA) + torch.ones(2)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("name", OPERATIONS)
def test_augmentation_stays_on_the_device_of_the_images(name: str) -> None:
    operation, images = OPERATIONS[name], torch.zeros(2, 3, 8, 8, device=CUDA)
    u = torch.rand(2, operation.draws)
    assert operation.apply(images, u.to(images, non_blocking=True)).device == CUDA


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("resident", [False, True])
def test_batches_of_a_split_are_on_the_device_of_its_labels(resident: bool) -> None:
    normalization = Normalization(torch.zeros(3), torch.ones(3), Whitening(torch.zeros(48), torch.zeros(48, 48)))
    pixels, labels = torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64)
    data = ImageSet(pixels, torch.arange(6), labels.to(CUDA), normalization.to(CUDA), 2, "fake")
    data = data.resident_on(CUDA) if resident else data
    batch = data.batch(torch.arange(3, device=CUDA))
    assert (batch.images.device, batch.labels.device) == (CUDA, CUDA)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("critic", [InfoNCECritic, PrototypeCritic, ClassMeanCritic])
def test_the_information_term_stays_on_its_device(critic: type[Critic]) -> None:
    with CUDA:
        term = InformationTerm([(8, 4, 4), (8, 2, 2)], 3, critic)
    synthetic, real = ([torch.zeros(n, 8, side, side, device=CUDA) for side in (4, 2)] for n in (3, 6))
    labels = torch.arange(9, device=CUDA) % 3
    value = term(synthetic, real, labels[:3], labels[3:])
    assert (value.loss.device, value.bounds.device) == (CUDA, CUDA)
    assert term.factor(synthetic[0], synthetic[0]).device == CUDA


class Stub(Derivatives):
    """A gradient and a sweep of the right shapes without a backward pass, which fake tensors cannot make."""

    def _gradient(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        return theta * self.loss(theta, images, labels)[:, None]

    def _sweep(self, theta: Tensor, images: Tensor, labels: Tensor, cotangent: Tensor, along_theta: bool) -> Sweep:
        return Sweep((theta * cotangent).sum(1), theta, images, None)


@pytest.mark.parametrize("optimizer", [SGD(), Momentum(), Adam()], ids=lambda rule: type(rule).__name__)
def test_the_unroll_stays_on_the_device_of_its_start(
    network: FlatNetwork, fake: Any, optimizer: InnerOptimizer
) -> None:
    images, labels = torch.zeros(6, 1, 4, 4, device=CUDA), torch.zeros(6, dtype=torch.int64, device=CUDA)
    start, student_lr = torch.zeros(2, network.num_parameters, device=CUDA), torch.zeros((), device=CUDA)
    chunks = Chunks(3, [Stream(0), Stream(1)], lambda images, stream, step: images)
    loop = InnerLoop(Stub(network), optimizer, chunks, 3)
    assert ExactUnroll()(loop, images, labels, student_lr, start).device == CUDA


def test_a_population_stays_on_the_device_of_its_parameters(network: FlatNetwork, fake: Any) -> None:
    data = InMemory(torch.zeros(6, 1, 4, 4, device=CUDA), torch.zeros(6, dtype=torch.int64, device=CUDA))
    theta = torch.zeros(2, network.num_parameters, device=CUDA)
    training = Training(2, batch_size=3, momentum=0.9, weight_decay=0.1, sharpness_radius=0.1)
    for rows in train(Stub(network), theta, [data, data], training, [Stream(0), Stream(1)]):
        assert rows.device == CUDA


def test_a_split_is_moved_to_a_device_once(real: ImageSet) -> None:
    moved = real.to(CPU)
    assert real.to(CPU) is moved
    assert torch.equal(moved.batch(torch.arange(3)).images, real.batch(torch.arange(3)).images)
