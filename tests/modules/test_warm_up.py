"""Heads and critic learn from real images before the first outer step, once."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import Batch
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.information.critics import InfoNCECritic
from mim4dd_pl.information.term import InformationTerm
from mim4dd_pl.modules.data import ImageDataModule
from mim4dd_pl.modules.gradients import learned
from mim4dd_pl.modules.warm_up import warm_up
from mim4dd_pl.networks.convnet import ConvNet
from mim4dd_pl.objectives.distribution_matching import DistributionMatching
from mim4dd_pl.objectives.sampling import real_batch
from mim4dd_pl.population.experts import Experts
from mim4dd_pl.population.training import Training
from tests.modules.test_distillation import fit

NETWORK = FlatNetwork(partial(ConvNet, depth=1, width=4), (1, 8, 8), 10)


def run(first: bool = True, heard: Sequence[Tensor] | None = None) -> L.Trainer:
    """What a warm-up sees of its run: in the first process, or in another one where the first says ``heard``."""
    strategy = SimpleNamespace(broadcast=lambda value: value if heard is None else heard)
    return cast(L.Trainer, SimpleNamespace(is_global_zero=first, strategy=strategy))


def built(**settings: Any) -> InformationTerm:
    with Stream(1).as_global():
        return InformationTerm(NETWORK.layer_shapes(), 10, real_batch_size=30, **settings)


def warmed(data: ImageDataModule, stream: Stream, trainer: L.Trainer | None = None, **settings: Any) -> InformationTerm:
    term = built(**settings)
    warm_up(term, NETWORK, data.train, NETWORK.initial, stream, trainer or run())
    return term


def vector(term: InformationTerm) -> Tensor:
    return parameters_to_vector(learned(term)).detach()


def pairs(data: ImageDataModule, stream: Stream) -> tuple[Batch, Batch]:
    """Two balanced batches of three real images of each class."""
    first, second = (real_batch(data.train, 3, stream.at(side)) for side in ("first", "second"))
    return first, second


@pytest.mark.parametrize("layers", [None, ["logits"], ["layer1", "logits"]])
def test_a_warm_up_is_adam_on_pairs_of_real_batches(
    data: ImageDataModule, stream: Stream, layers: list[str] | None
) -> None:
    """To the bit the same as a plain loop, with a network for each step."""
    settings: dict[str, Any] = {"layers": layers, "critic": partial(InfoNCECritic, learnable=True)}
    oracle = built(**settings)
    optimizer = torch.optim.Adam(oracle.parameters(), lr=1e-3)
    for step in range(3):
        theta, (first, second) = NETWORK.initial(stream.at(step)), pairs(data, stream.at(step))
        maps = [NETWORK.layers(theta, side.images) for side in (first, second)]
        if layers is not None:
            maps = [(*shown, NETWORK(theta, side.images)) for shown, side in zip(maps, (first, second), strict=True)]
        optimizer.zero_grad()
        oracle(*maps, first.labels, second.labels).loss.backward()
        optimizer.step()
    term = warmed(data, stream, warm_up_steps=3, **settings)
    assert torch.equal(vector(term), vector(oracle))
    assert not torch.equal(vector(term), vector(built(**settings)))
    assert all(parameter.grad is None for parameter in term.parameters())


def test_a_warm_up_repeats_itself_and_follows_its_stream(data: ImageDataModule, stream: Stream) -> None:
    one, again, other = (warmed(data, at, warm_up_steps=2) for at in (stream, stream, stream.at("other")))
    assert torch.equal(vector(one), vector(again))
    assert not torch.equal(vector(one), vector(other))


def test_a_warm_up_raises_the_bound_on_other_images(data: ImageDataModule, stream: Stream) -> None:
    theta, (first, second) = NETWORK.initial(stream.at("fresh")), pairs(data, stream.at("other"))
    maps = [NETWORK.layers(theta, side.images) for side in (first, second)]
    before, after = (
        float(term(*maps, first.labels, second.labels).bounds)
        for term in (built(), warmed(data, stream, warm_up_steps=40, lr=1e-2))
    )
    assert before < after < math.log(10)


def test_other_processes_take_what_the_first_has_learned(data: ImageDataModule, stream: Stream) -> None:
    first = warmed(data, stream, warm_up_steps=2)
    other = warmed(data, stream, run(first=False, heard=learned(first)), warm_up_steps=2)
    assert torch.equal(vector(other), vector(first))


def test_networks_of_a_warm_up_are_experts_or_fresh(
    data: ImageDataModule, experts: Experts, tmp_path: Path, stream: Stream
) -> None:
    """Targets of segments of the first step, from every expert and start epoch; fresh ones beside a host without."""
    module = fit(data, experts)
    drawn = [module._network_at_first(stream.at(step)) for step in range(40)]
    targets = [module.store.segment(expert, epoch, 1).target for expert in range(2) for epoch in range(2)]
    assert [sum(theta.equal(target) for theta in drawn) > 0 for target in targets] == [True] * 4
    assert all(any(theta.equal(target) for target in targets) for theta in drawn)
    other = fit(data, Experts(str(tmp_path), Training(2)), objective=DistributionMatching(2))
    assert torch.equal(other._network_at_first(stream), other.network.initial(stream.at("student")))


def test_a_resumed_run_has_its_heads_from_the_checkpoint(
    data: ImageDataModule, experts: Experts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warmed up at step 0 alone; two steps in one run or in two are the same to the bit."""
    calls: list[Stream] = []

    def spy(*arguments: Any) -> None:
        calls.append(arguments[4])
        warm_up(*arguments)

    monkeypatch.setattr("mim4dd_pl.modules.distillation.warm_up", spy)
    information = partial(InformationTerm, warm_up_steps=2, layers=["logits"])
    whole, begun = (fit(data, experts, steps, information=information) for steps in (2, 1))
    begun.trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert calls == [begun.stream.at("warm up")] * 2
    resumed = fit(data, experts, 2, information=information, ckpt_path=tmp_path / "one.ckpt")
    assert len(calls) == 2
    for name, part in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], part)


def test_without_warm_up_steps_nothing_is_drawn(
    data: ImageDataModule, experts: Experts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mim4dd_pl.modules.distillation.warm_up", lambda *_: pytest.fail("warmed up"))
    fit(data, experts, information=InformationTerm)
