"""The optimisers of an outer step: one for images, student learning rate and labels, one for heads and critic."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mim4dd_pl.information.term import InformationTerm
from mim4dd_pl.modules.gradients import Gradients, learned
from mim4dd_pl.modules.lightning import step_uncounted
from mim4dd_pl.objectives.synthetic import SyntheticImages

OuterOptimizer = Literal["sgd", "adam"]


@dataclass(frozen=True)
class OuterOptimizers:
    """How images, student learning rate and soft labels move, by one optimiser; heads and critic have one more, Adam.

    Args:
        kind: SGD with ``momentum``, or Adam.
        momentum: With SGD, in [0, 1).
        lr_images: Learning rate of the pixels, at least 0.
        lr_student_lr: Of the student's learning rate, at least 0.
        lr_labels: Of the logits of soft labels, if there are any.
    """

    kind: OuterOptimizer
    momentum: float
    lr_images: float
    lr_student_lr: float
    lr_labels: float

    def __post_init__(self) -> None:
        for name in ("lr_images", "lr_student_lr"):
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise ValueError(f"model.{name} must be at least 0 and finite, got {value}.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"model.momentum must lie in [0, 1), got {self.momentum}.")

    def build(self, synthetic: SyntheticImages, information: InformationTerm | None) -> list[torch.optim.Optimizer]:
        """One optimiser with a group for each of its learning rates, as Lightning counts every step of each towards
        ``max_steps``; one more if the term learns.
        """
        parameters = (synthetic.images, synthetic.student_lr, synthetic.label_logits)
        rates = zip(parameters, (self.lr_images, self.lr_student_lr, self.lr_labels), strict=True)
        groups = [{"params": [parameter], "lr": lr} for parameter, lr in rates if parameter is not None]
        outer = torch.optim.SGD(groups, momentum=self.momentum) if self.kind == "sgd" else torch.optim.Adam(groups)
        if information is None or not learned(information):
            return [outer]
        return [outer, torch.optim.Adam(learned(information), lr=information.lr)]


def set_gradients(
    synthetic: SyntheticImages, information: InformationTerm | None, images: Tensor, student_lr: Tensor, mean: Gradients
) -> None:
    """Hand the gradients of a step to the parameters; ``images`` and ``student_lr`` are those of both terms joined."""
    synthetic.images.grad, synthetic.student_lr.grad = images, student_lr
    if synthetic.label_logits is not None:
        synthetic.label_logits.grad = mean.host_labels
    own = learned(information)
    parts = mean.information_parameters.split([parameter.numel() for parameter in own])
    for parameter, part in zip(own, parts, strict=True):
        parameter.grad = part.view_as(parameter)


def step(optimizers: Any) -> None:
    """One step of each, counted once."""
    first, *others = optimizers if isinstance(optimizers, Sequence) else [optimizers]
    first.step()
    for optimizer in others:
        step_uncounted(optimizer)


def keep_settings(states: Sequence[dict[str, Any]], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Give stored states of the optimisers the learning rates and momenta of the recipe at hand."""
    for state, optimizer in zip(states, optimizers, strict=True):
        for stored, now in zip(state["param_groups"], optimizer.state_dict()["param_groups"], strict=True):
            stored.update(now)


def all_finite(*values: Tensor) -> bool:
    """Whether every number of every tensor is finite; waits for the device once."""
    return bool(torch.stack([torch.isfinite(value).all() for value in values]).all())
