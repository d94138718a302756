r"""The inner loop: students trained for N steps, differentiable in images, learning rate and start.

    theta_N = unroll(derivatives, optimizer, minibatch, images, student_lr, start, steps)

All three classes compute the same theta_N; they differ in how the gradient comes back. :class:`ExactUnroll` (the
default) is exact at the memory of one step plus what the optimiser keeps, :class:`FullGraphUnroll` is autograd through
everything (the oracle, and what the field's code does), :class:`DetachedUnroll` is TESLA's approximation.

The exact gradient: with v the cotangent of :math:`\theta_{i+1}`, and u that of the gradient :math:`g_i`, which the
optimiser pulls back from :math:`-\alpha v`, one sweep per step from the last to the first:

.. math::

    s = \langle g_i, u\rangle:\qquad \bar\theta_i = v + \partial s/\partial\theta,\quad
    \bar x_i = \partial s/\partial x,\quad \bar\alpha = -\langle d_i, v\rangle

Only one step's graph exists at a time. K students are unrolled at once, each from its own start on its own minibatches.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mim4dd_pl.derivatives import Derivatives
from mim4dd_pl.optimizers import InnerOptimizer, State

Minibatch = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""(all synthetic images (S, c, h, w), step) -> x_i (K, B, c, h, w) and y_i (K, B), differentiable in the images.

It is called again during the backward pass and must then return what it returned before.
"""


class Unroll(ABC):
    """A way to differentiate through N steps of training."""

    @abstractmethod
    def __call__(
        self,
        derivatives: Derivatives,
        optimizer: InnerOptimizer,
        minibatch: Minibatch,
        images: Tensor,
        student_lr: Tensor,
        start: Tensor,
        steps: int,
        window: range | None = None,
    ) -> Tensor:
        """Parameters after the inner loop.

        Args:
            derivatives: Of the students' loss.
            optimizer: How a student moves along its gradient.
            minibatch: (images, i) -> the minibatches of step i.
            images: All synthetic images, shape (S, c, h, w).
            student_lr: alpha, shape (), positive.
            start: theta_0 of each student, shape (K, P).
            steps: N, at least 1.
            window: Truncation, for hosts that want it: only these consecutive steps count as depending on images and
                student_lr, and only with step 0 among them does the result depend on ``start``. All by default.

        Returns:
            theta_N of each student, shape (K, P), with a graph to ``images``, ``student_lr`` and ``start``.

        Raises:
            ValueError: If ``window`` is empty or not consecutive steps of 0..N-1.
        """


class ExactUnroll(Unroll):
    """The exact gradient in constant memory: keeps theta_0..theta_N, rebuilds one step's graph at a time."""

    def __call__(
        self,
        derivatives: Derivatives,
        optimizer: InnerOptimizer,
        minibatch: Minibatch,
        images: Tensor,
        student_lr: Tensor,
        start: Tensor,
        steps: int,
        window: range | None = None,
    ) -> Tensor:
        plan = _Plan(derivatives, optimizer, minibatch, steps, _whole(window, steps), detached=False)
        theta: Tensor = _Replay.apply(images, student_lr, start, plan)
        return theta


class DetachedUnroll(Unroll):
    r"""Each step's direct dependence on its own images only (TESLA): not the gradient of the unroll.

    The sweep's :math:`\partial s/\partial\theta` is left out, so v passes every step unchanged.

    Source: Cui et al. 2023 (arXiv:2211.10586).
    """

    def __call__(
        self,
        derivatives: Derivatives,
        optimizer: InnerOptimizer,
        minibatch: Minibatch,
        images: Tensor,
        student_lr: Tensor,
        start: Tensor,
        steps: int,
        window: range | None = None,
    ) -> Tensor:
        plan = _Plan(derivatives, optimizer, minibatch, steps, _whole(window, steps), detached=True)
        theta: Tensor = _Replay.apply(images, student_lr, start, plan)
        return theta


class FullGraphUnroll(Unroll):
    """Autograd through the whole inner loop; memory grows with N. Never compiled: for tests and comparisons."""

    def __call__(
        self,
        derivatives: Derivatives,
        optimizer: InnerOptimizer,
        minibatch: Minibatch,
        images: Tensor,
        student_lr: Tensor,
        start: Tensor,
        steps: int,
        window: range | None = None,
    ) -> Tensor:
        window = _whole(window, steps)
        theta, state = start, optimizer.initial(start)
        for i in range(steps):
            if i <= window[0] and window[0] > 0:  # before the window nothing depends on anything
                theta, state = theta.detach(), tuple(part.detach() for part in state)
            inside = i in window
            x, y = minibatch(images if inside else images.detach(), i)
            if not theta.requires_grad:
                theta = theta.detach().requires_grad_()
            (g,) = torch.autograd.grad(derivatives.loss(theta, x, y).sum(), theta, create_graph=True)
            direction, state = optimizer.direction(state, g, i)
            theta = theta - (student_lr if inside else student_lr.detach()) * direction
        return theta


def _whole(window: range | None, steps: int) -> range:
    window = range(steps) if window is None else window
    if not window or window.step != 1 or window[0] < 0 or window[-1] >= steps:
        raise ValueError(f"A window must be consecutive steps of 0..{steps - 1}, got {window}.")
    return window


class _Plan(NamedTuple):
    """What an unroll needs beside its differentiable inputs."""

    derivatives: Derivatives
    optimizer: InnerOptimizer
    minibatch: Minibatch
    steps: int
    window: range
    detached: bool


class _Replay(torch.autograd.Function):
    """Forward without graphs, backward as one sweep per step from the last to the first of the window."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, student_lr: Tensor, start: Tensor, plan: _Plan) -> Tensor:
        theta, state = start, plan.optimizer.initial(start)
        saved: list[Tensor] = []
        for i in range(plan.steps):
            g = plan.derivatives.gradient(theta, *plan.minibatch(images, i))
            direction, state = plan.optimizer.direction(state, g, i)
            if i >= plan.window[0]:
                saved += [theta, *plan.optimizer.kept(state, g)]
            theta = theta - student_lr * direction
        ctx.save_for_backward(images, student_lr, *saved)
        ctx.plan = plan
        return theta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_theta: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        images, student_lr, *saved = ctx.saved_tensors
        to_images, to_lr = torch.zeros_like(images), torch.zeros_like(student_lr)
        to_state: State = tuple(torch.zeros_like(part) for part in plan.optimizer.initial(to_theta))
        first = plan.window[0]
        per_step = len(saved) // (plan.steps - first)
        for i in reversed(range(first, plan.steps)):
            theta, *rest = saved[(i - first) * per_step : (i - first + 1) * per_step]
            kept = tuple(rest)
            to_direction = -student_lr * to_theta
            to_gradient, to_state = plan.optimizer.pull_back(kept, to_direction, to_state, i)
            with torch.enable_grad():
                leaf = images.detach().requires_grad_()
                x, y = plan.minibatch(leaf, i)
            swept = plan.derivatives.sweep(theta, x, y, to_gradient, along_theta=not plan.detached)
            if i in plan.window:
                to_images += torch.autograd.grad(x, leaf, swept.images)[0]
                to_lr += plan.optimizer.along(kept, to_direction, swept.s, i).sum() / student_lr
            to_theta = to_theta + swept.theta
        return to_images, to_lr, to_theta if first == 0 else torch.zeros_like(to_theta), None
