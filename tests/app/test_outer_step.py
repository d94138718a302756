"""What is extrapolated from a few steps is what all of them take."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from mim4dd_pl.app.outer_step import _saved_for_backward, outer_steps
from mim4dd_pl.app.timing import training_step
from mim4dd_pl.data.sets import InMemory
from mim4dd_pl.engine.derivatives import Derivatives
from mim4dd_pl.engine.unroll import ExactUnroll, FullGraphUnroll, Unroll
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.modules.distillation import DistillationModule
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.objectives.base import Objective
from mim4dd_pl.objectives.performance_matching import PerformanceMatching
from mim4dd_pl.objectives.trajectory_matching import TrajectoryMatching
from mim4dd_pl.population.experts import Experts
from mim4dd_pl.population.training import Training

Clock = Callable[..., float]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Ticks with every image of a gradient three times, of a sweep eight times; in place of seconds."""
    ticks = [0]

    def ticking(price: int, method: Callable[..., object]) -> Callable[..., object]:
        def call(self: Derivatives, theta: Tensor, images: Tensor, *rest: object) -> object:
            ticks[0] += price * images.shape[1]
            return method(self, theta, images, *rest)

        return call

    def seconds(run: Callable[[], object], patience: float = 0.0) -> float:
        before = ticks[0]
        run()
        return float(ticks[0] - before)

    monkeypatch.setattr(Derivatives, "_gradient", ticking(3, Derivatives._gradient))
    monkeypatch.setattr(Derivatives, "_sweep", ticking(8, Derivatives._sweep))
    for module in ("outer_step", "timing"):
        monkeypatch.setattr(f"mim4dd_pl.app.{module}.seconds", seconds)
    return seconds


def distillation(objective: Objective, experts: Experts, images_per_class: int) -> DistillationModule:
    network = partial(ConvNet, depth=1, width=4)
    settings = {"images_per_class": images_per_class, "init": "noise", "compile": False}
    return DistillationModule(network, (1, 8, 8), 10, objective, experts, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "objective",
    [
        TrajectoryMatching(12, 1, 2),
        TrajectoryMatching(12, 1, 2, synthetic_batch_size=130),
        TrajectoryMatching(2, 1, 2),
        PerformanceMatching(12),
        PerformanceMatching(12, synthetic_batch_size=100),
    ],
    ids=repr,
)
def test_outer_steps_take_what_a_few_inner_steps_foretell(
    objective: Objective, clock: Clock, data: ImageDataModule, experts: Experts
) -> None:
    module = distillation(objective, experts, images_per_class=50)
    minutes, _ = outer_steps(module, data, 7)
    assert module.objective is objective
    assert 60 * minutes == pytest.approx(7 * clock(lambda: module.mean_gradients(0)))


@pytest.mark.parametrize("unroll", [ExactUnroll(), FullGraphUnroll()], ids=lambda unroll: type(unroll).__name__)
def test_memory_grows_with_inner_steps_as_foretold(unroll: Unroll, data: ImageDataModule, experts: Experts) -> None:
    module = distillation(TrajectoryMatching(12, 1, 2, unroll=unroll), experts, images_per_class=2)
    _, growth = outer_steps(module, data, 1)
    saved = {}
    whole = module.objective
    for steps in (3, 12):
        module.objective = whole.shortened(steps, 20)
        saved[steps] = _saved_for_backward(module)
    assert saved[3] + growth == pytest.approx(saved[12], rel=1e-6)


@pytest.mark.parametrize("batch_size", [30, 96, 500])
def test_a_training_step_takes_what_one_of_its_chunks_foretells(
    batch_size: int, clock: Clock, data: ImageDataModule, experts: Experts
) -> None:
    engine = Derivatives(distillation(TrajectoryMatching(1, 1, 1), experts, 1).network)
    images = InMemory(torch.zeros(500, 1, 8, 8), torch.zeros(500, dtype=torch.int64))
    assert training_step(engine, images, Training(epochs=5, batch_size=batch_size), networks=1) == 3 * batch_size
