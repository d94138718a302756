"""Students of an evaluation: how a learning rate is chosen, what is compiled, and how processes share the work."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import Batch, ImageSet, InMemory
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.population.evaluator import Evaluator, LearningRates, Protocol
from mim4dd_pl.population.training import Training


@pytest.fixture
def sets(real: ImageSet) -> list[InMemory]:
    images = InMemory(*real.batch(torch.arange(9)))
    return [InMemory(images.images.float(), images.labels)] * 3


def every_second(rank: int, count: int) -> range:
    return range(rank, count, 2)


@pytest.fixture
def evaluator(network: FlatNetwork, sets: list[InMemory], training: Training, stream: Stream) -> Evaluator:
    """Three students, tested and validated on what they are trained on."""

    def batches() -> list[Batch]:
        return [sets[0].batch(torch.arange(9))]

    return Evaluator(Protocol(training, 3), network, stream, torch.device("cpu"), batches, batches)


@pytest.mark.parametrize(
    ("lrs", "learned", "expected"),
    [(None, 0.3, [0.1]), ("learned", 0.3, [0.3]), ("learned", None, [0.1]), ([0.2, 0.4], 0.3, [0.2, 0.4])],
)
def test_learning_rates_are_those_of_the_protocol(
    lrs: LearningRates, learned: float | None, expected: list[float], training: Training
) -> None:
    assert Protocol(training, lrs=lrs).candidates(learned) == expected


def test_the_best_of_several_learning_rates_is_taken_and_it_alone_is_scored(
    evaluator: Evaluator, sets: list[InMemory]
) -> None:
    lrs = [1e-6, 0.1]
    alone = [replace(evaluator, protocol=replace(evaluator.protocol, lrs=[lr])) for lr in lrs]
    scores = [each.test("x", each.train(sets)) for each in alone]
    both = replace(evaluator, protocol=replace(evaluator.protocol, lrs=lrs))
    chosen = both.test("x", both.train(sets))
    best = max(scores, key=lambda score: score.mean)
    assert (chosen.lr, chosen.confusion.tolist()) == (best.lr, best.confusion.tolist())


def test_shares_of_two_processes_add_up_to_one_evaluation(evaluator: Evaluator, sets: list[InMemory]) -> None:
    whole = evaluator.test("x", evaluator.train(sets))
    parts = [replace(evaluator, share=partial(every_second, rank)) for rank in (0, 1)]
    shares = [part.test("x", part.train(sets)).confusion for part in parts]
    assert torch.equal(shares[0] + shares[1], whole.confusion)
    assert torch.equal(parts[1].alone().test("x", parts[1].alone().train(sets)).confusion, whole.confusion)


def test_a_decision_to_compile_is_made_once_for_sets_of_one_size(evaluator: Evaluator, sets: list[InMemory]) -> None:
    evaluator.compile = "auto"
    engine = evaluator.derivatives(9)
    assert evaluator.compiled == {f"3 epochs of 9 images in batches of 4, {evaluator.network.name}": False}
    assert evaluator.derivatives(9) is engine is evaluator.alone().derivatives(9)
    assert evaluator.derivatives(8) is not engine


def test_other_epochs_take_the_same_engine(evaluator: Evaluator) -> None:
    """What is compiled does not depend on them, only whether it pays."""
    shorter = replace(evaluator, protocol=replace(evaluator.protocol, training=Training(2, batch_size=4, lr=0.1)))
    assert shorter.derivatives(9) is evaluator.derivatives(9)
    assert {name.partition(" of")[0] for name in evaluator.compiled} == {"2 epochs", "3 epochs"}
