"""The optimisers of an outer step: one for images, student learning rate and labels, one for heads and critic."""

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mim4dd_pl.basics.errors import DivergenceError
from mim4dd_pl.information.term import InformationTerm
from mim4dd_pl.modules.gradients import Gradients, learned
from mim4dd_pl.modules.lightning import step_uncounted
from mim4dd_pl.objectives.synthetic import SyntheticImages

OuterOptimizer = Literal["sgd", "adam"]


def outer_optimizers(
    synthetic: SyntheticImages,
    information: InformationTerm | None,
    kind: OuterOptimizer,
    momentum: float,
    lr_images: float,
    lr_student_lr: float,
    lr_labels: float,
) -> list[torch.optim.Optimizer]:
    """One optimiser with a group for each of images, student learning rate and soft labels; one more for the term.

    They are one optimiser because Lightning counts every step of each towards ``max_steps``.
    """
    groups = [
        {"params": [synthetic.images], "lr": lr_images},
        {"params": [synthetic.student_lr], "lr": lr_student_lr},
    ]
    if synthetic.label_logits is not None:
        groups.append({"params": [synthetic.label_logits], "lr": lr_labels})
    outer = torch.optim.SGD(groups, momentum=momentum) if kind == "sgd" else torch.optim.Adam(groups)
    if information is None or not learned(information):
        return [outer]
    return [outer, torch.optim.Adam(learned(information), lr=information.lr)]


def set_gradients(
    synthetic: SyntheticImages, information: InformationTerm | None, images: Tensor, student_lr: Tensor, mean: Gradients
) -> None:
    """Hand the gradients of an outer step to the parameters.

    Args:
        synthetic: Gets those of images, student learning rate and soft labels.
        information: Gets those of heads and critic.
        images: Of the images, both terms joined.
        student_lr: Likewise of the student learning rate.
        mean: Those of which nothing has to be joined.
    """
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


_log = logging.getLogger(__name__)

MOST_IN_A_ROW = 10
"""A skipped step changes nothing but the segment that is drawn, so ten segments that all fail blame the images."""


class Skips:
    """Counts the steps that are skipped.

    Attributes:
        in_row: How many since the last one that was made.
        total: How many so far.
    """

    def __init__(self, in_row: int = 0, total: int = 0) -> None:
        self.in_row, self.total = in_row, total

    def count(self, step: int, loss: Tensor, length: Tensor, student_lr: Tensor) -> None:
        """One more, with its loss, length of the pixel gradient and student lr; warns of the first of a row.

        Raises:
            DivergenceError: At the last of ``MOST_IN_A_ROW``.
        """
        self.in_row, self.total = self.in_row + 1, self.total + 1
        if self.in_row >= MOST_IN_A_ROW:
            raise DivergenceError(
                f"The matching loss is {loss:.3g} and the pixel gradient {length:.3g} at step {step}, with a "
                f"student lr of {float(student_lr):.3g}: lower model.lr_images, model.lr_student_lr or the weight of a "
                "literal information term, or set model.image_gradient_clip."
            )
        if self.in_row == 1:
            _log.warning("Step %d is skipped, as its loss or gradient is not finite.", step)


def all_finite(*values: Tensor) -> bool:
    """Whether every number of every tensor is finite; waits for the device once."""
    return bool(torch.stack([torch.isfinite(value).all() for value in values]).all())
