"""The inner loop: a student trained for N steps, differentiable in images, learning rate and start.

    theta_N = unroll(loss, minibatch, images, student_lr, start, steps)

All three classes compute the same theta_N; they differ in how the gradient comes back. :class:`ExactUnroll` (the
default) is exact at the memory of one step, :class:`FullGraphUnroll` is autograd through everything (the oracle, and
what the field's code does), :class:`DetachedUnroll` is TESLA's approximation. Inner optimiser: plain SGD.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mim4dd_pl.functional import StepLoss, Sweep, detached_sweep, sgd_step, sgd_sweep

Minibatch = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(all synthetic images, step) -> (x_i, y_i): selects and augments, differentiable in the images.

It is called again during the backward pass and must then return what it returned before.
"""


class Unroll(ABC):
    """A way to differentiate through N steps of SGD."""

    @abstractmethod
    def __call__(
        self, loss: StepLoss, minibatch: Minibatch, images: Tensor, student_lr: Tensor, start: Tensor, steps: int
    ) -> Tensor:
        """Parameters after the inner loop.

        Args:
            loss: (theta, x, y) -> loss of a minibatch, twice differentiable.
            minibatch: (images, i) -> the minibatch of step i.
            images: All synthetic images, shape (S, c, h, w).
            student_lr: alpha, shape ().
            start: theta_0, shape (P,).
            steps: N, at least 1.

        Returns:
            theta_N, shape (P,), with a graph to ``images``, ``student_lr`` and ``start``.
        """


class ExactUnroll(Unroll):
    """The exact gradient in constant memory: keeps theta_0..theta_N, rebuilds one step's graph at a time."""

    def __call__(
        self, loss: StepLoss, minibatch: Minibatch, images: Tensor, student_lr: Tensor, start: Tensor, steps: int
    ) -> Tensor:
        theta: Tensor = _Replay.apply(images, student_lr, start, loss, minibatch, steps, sgd_sweep)
        return theta


class DetachedUnroll(Unroll):
    """Each step's direct dependence on its own images only (TESLA): cheaper, and not the gradient of the unroll."""

    def __call__(
        self, loss: StepLoss, minibatch: Minibatch, images: Tensor, student_lr: Tensor, start: Tensor, steps: int
    ) -> Tensor:
        theta: Tensor = _Replay.apply(images, student_lr, start, loss, minibatch, steps, detached_sweep)
        return theta


class FullGraphUnroll(Unroll):
    """Autograd through the whole inner loop; memory grows with N. For tests and comparisons."""

    def __call__(
        self, loss: StepLoss, minibatch: Minibatch, images: Tensor, student_lr: Tensor, start: Tensor, steps: int
    ) -> Tensor:
        theta = start if start.requires_grad else start.detach().requires_grad_()
        for i in range(steps):
            x, y = minibatch(images, i)
            (gradient,) = torch.autograd.grad(loss(theta, x, y), theta, create_graph=True)
            theta = theta - student_lr * gradient
        return theta


class _Replay(torch.autograd.Function):
    """Forward without graphs, backward as one sweep per step from the last to the first."""

    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        student_lr: Tensor,
        start: Tensor,
        loss: StepLoss,
        minibatch: Minibatch,
        steps: int,
        sweep: Callable[..., Sweep],
    ) -> Tensor:
        path = [start]
        for i in range(steps):
            path.append(sgd_step(loss, path[-1], *minibatch(images, i), student_lr))
        ctx.save_for_backward(images, student_lr, *path[:-1])
        ctx.loss, ctx.minibatch, ctx.sweep = loss, minibatch, sweep
        return path[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        images, student_lr, *path = ctx.saved_tensors
        to_images, to_lr = torch.zeros_like(images), torch.zeros_like(student_lr)
        for i in reversed(range(len(path))):
            with torch.enable_grad():
                leaf = images.detach().requires_grad_()
                x, y = ctx.minibatch(leaf, i)
            swept = ctx.sweep(ctx.loss, path[i], x, y, student_lr, cotangent)
            to_images += torch.autograd.grad(x, leaf, swept.images)[0]
            to_lr += swept.student_lr
            cotangent = swept.theta
        return to_images, to_lr, cotangent, None, None, None, None
