r"""The inner loop: students trained for N steps, differentiable in images, learning rate and start.

    theta_N = unroll(loop, images, labels, student_lr, start)

All three classes compute the same theta_N; they differ in how the gradient comes back. :class:`ExactUnroll` (the
default) is exact at the memory of one step plus what the optimiser keeps, :class:`FullGraphUnroll` is autograd through
everything (the oracle, and what the field's code does), :class:`DetachedUnroll` is TESLA's approximation. Soft labels
are differentiated like images; classes have no gradient. :func:`unroll` is the exact one for a module of one's own.

The exact gradient: with v the cotangent of :math:`\theta_{i+1}`, and u that of the gradient :math:`g_i`, which the
optimiser pulls back from :math:`-\alpha v`, one sweep per step from the last to the first:

.. math::

    s = \langle g_i, u\rangle:\qquad \bar\theta_i = v + \partial s/\partial\theta,\quad
    \bar x_i = \partial s/\partial x,\quad \bar y_i = \partial s/\partial y,\quad \bar\alpha = -\langle d_i, v\rangle

Only one step's graph exists at a time. K students are unrolled at once, each from its own start on its own minibatches.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.engine.derivatives import Derivatives, Work, soft
from mim4dd_pl.engine.flat import FlatNetwork
from mim4dd_pl.engine.optimizers import SGD, InnerOptimizer, State

Minibatch = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(all synthetic images (S, c, h, w), their labels (S,) or (S, C), step) -> x_i (K, B, c, h, w) and y_i (K, B) or
(K, B, C), differentiable in images and soft labels.

It is called again during the backward pass and must then return what it returned before.
"""


@dataclass(frozen=True)
class InnerLoop:
    """What K students do from their start on.

    Args:
        derivatives: Of the students' loss.
        optimizer: How a student moves along its gradient.
        minibatch: (images, labels, i) -> the minibatches of step i.
        steps: N, at least 1.
        window: Truncation, for hosts that want it: only these consecutive steps count as depending on images,
            labels and student lr, and only with step 0 among them does the result depend on the start. All by default.

    Raises:
        ValueError: If ``window`` is empty or not consecutive steps of 0..N-1.
    """

    derivatives: Derivatives
    optimizer: InnerOptimizer
    minibatch: Minibatch
    steps: int
    window: range | None = None

    def __post_init__(self) -> None:
        window = self.differentiated
        if not window or window.step != 1 or window[0] < 0 or window[-1] >= self.steps:
            raise ValueError(f"A window must be consecutive steps of 0..{self.steps - 1}, got {window}.")

    @property
    def differentiated(self) -> range:
        """The window, or all steps."""
        return range(self.steps) if self.window is None else self.window


class Unroll(ABC):
    """A way to differentiate through N steps of training."""

    def __repr__(self) -> str:
        return type(self).__name__

    def work(self, batch_size: int, steps: int, window: int) -> Work:
        """What ``steps`` steps on ``batch_size`` images each take, the last ``window`` of them differentiated."""
        return Work(batch_size, gradients=steps, sweeps=window)

    @abstractmethod
    def __call__(self, loop: InnerLoop, images: Tensor, labels: Tensor, student_lr: Tensor, start: Tensor) -> Tensor:
        """Parameters after the inner loop.

        Args:
            loop: What the students do.
            images: All synthetic images, shape (S, c, h, w).
            labels: Their classes, shape (S,), or soft labels, shape (S, C).
            student_lr: alpha, shape (), positive.
            start: theta_0 of each student, shape (K, P).

        Returns:
            theta_N of each student, shape (K, P), with a graph to ``images``, soft ``labels``, ``student_lr`` and
            ``start``.
        """


class ExactUnroll(Unroll):
    """The exact gradient in constant memory: keeps theta_0..theta_N, rebuilds one step's graph at a time."""

    def __call__(self, loop: InnerLoop, images: Tensor, labels: Tensor, student_lr: Tensor, start: Tensor) -> Tensor:
        theta: Tensor = _Replay.apply(images, labels, student_lr, start, loop, True)
        return theta


class DetachedUnroll(Unroll):
    r"""Each step's direct dependence on its own images and labels only (TESLA): not the gradient of the unroll.

    The sweep's :math:`\partial s/\partial\theta` is left out, so v passes every step unchanged.

    Source: Cui et al. 2023 (arXiv:2211.10586).
    """

    def __call__(self, loop: InnerLoop, images: Tensor, labels: Tensor, student_lr: Tensor, start: Tensor) -> Tensor:
        theta: Tensor = _Replay.apply(images, labels, student_lr, start, loop, False)
        return theta


class FullGraphUnroll(Unroll):
    """Autograd through the whole inner loop; memory grows with N. Never compiled: for tests and comparisons."""

    def work(self, batch_size: int, steps: int, window: int) -> Work:
        return super().work(batch_size, steps, window)._replace(one_graph=True)

    def __call__(self, loop: InnerLoop, images: Tensor, labels: Tensor, student_lr: Tensor, start: Tensor) -> Tensor:
        window, optimizer = loop.differentiated, loop.optimizer
        theta, state = start, optimizer.initial(start)
        for i in range(loop.steps):
            if i <= window[0] and window[0] > 0:  # before the window nothing depends on anything
                theta, state = theta.detach(), tuple(part.detach() for part in state)
            inside = i in window
            x, y = loop.minibatch(*((images, labels) if inside else (images.detach(), labels.detach())), i)
            if not theta.requires_grad:
                theta = theta.detach().requires_grad_()
            (g,) = torch.autograd.grad(loop.derivatives.loss(theta, x, y).sum(), theta, create_graph=True)
            direction, state = optimizer.direction(state, g, i)
            theta = theta - (student_lr if inside else student_lr.detach()) * direction
        return theta


class _Replay(torch.autograd.Function):
    """Forward without graphs, backward as one sweep per step from the last to the first of the window."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, labels: Tensor, student_lr: Tensor, start: Tensor, loop: InnerLoop, along_theta: bool
    ) -> Tensor:
        theta, state = start, loop.optimizer.initial(start)
        saved: list[Tensor] = []
        for i in range(loop.steps):
            g = loop.derivatives.gradient(theta, *loop.minibatch(images, labels, i))
            direction, state = loop.optimizer.direction(state, g, i)
            if i >= loop.differentiated[0]:
                saved += [theta, *loop.optimizer.kept(state, g)]
            theta = theta - student_lr * direction
        ctx.save_for_backward(images, labels, student_lr, *saved)
        ctx.loop, ctx.along_theta = loop, along_theta
        return theta

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_theta: Tensor) -> tuple[Tensor | None, ...]:
        loop: InnerLoop = ctx.loop
        window = loop.differentiated
        images, labels, student_lr, *saved = ctx.saved_tensors
        to_images, to_lr = torch.zeros_like(images), torch.zeros_like(student_lr)
        to_labels = torch.zeros_like(labels) if soft(labels) else None
        to_state: State = tuple(torch.zeros_like(part) for part in loop.optimizer.initial(to_theta))
        first = window[0]
        per_step = len(saved) // (loop.steps - first)
        for i in reversed(range(first, loop.steps)):
            theta, *rest = saved[(i - first) * per_step : (i - first + 1) * per_step]
            kept = tuple(rest)
            to_direction = -student_lr * to_theta
            to_gradient, to_state = loop.optimizer.pull_back(kept, to_direction, to_state, i)
            with torch.enable_grad():
                all_x, all_y = images.detach().requires_grad_(), labels.detach().requires_grad_(soft(labels))
                x, y = loop.minibatch(all_x, all_y, i)
            swept = loop.derivatives.sweep(theta, x, y, to_gradient, along_theta=ctx.along_theta)
            if i in window:
                to_images += torch.autograd.grad(x, all_x, swept.images)[0]
                if to_labels is not None:
                    to_labels += torch.autograd.grad(y, all_y, swept.labels)[0]
                to_lr += loop.optimizer.along(kept, to_direction, swept.s, i).sum() / student_lr
            to_theta = to_theta + swept.theta
        to_start = to_theta if first == 0 else torch.zeros_like(to_theta)
        return to_images, to_labels, to_lr, to_start, None, None


def unroll(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    lr: float | Tensor,
    steps: int,
    start: Tensor | Mapping[str, Tensor] | None = None,
    minibatch: Minibatch | None = None,
) -> Tensor:
    r"""Parameters after N steps of SGD on the mean cross-entropy, with their exact gradient in constant memory.

    .. math:: \theta_{i+1} = \theta_i - \alpha\, \nabla_\theta CE(\theta_i; x, y),\qquad i = 0, .., N - 1

    The graph leads to images, soft labels, lr and start (by default to the parameters of ``model``). Beside
    :math:`\theta_0, .., \theta_N` it keeps nothing, and its backward pass needs the memory of one step. The model
    itself is not changed; its norms take the statistics of the images as in training, and its dropout is off::

        theta = unroll(model, images, labels, lr, steps=50)
        named = FlatNetwork.of(model, image_shape).unflatten(theta)
        cross_entropy(torch.func.functional_call(model, named, (real,)), real_labels).backward()  # to images.grad

    Source: the objective is that of Wang et al. 2018 (arXiv:1811.10959), Algorithm 1; the gradient is derived above.

    Args:
        model: A classifier, (B, c, h, w) -> logits (B, C), with parameters of one type on one device.
        images: Shape (B, c, h, w), of the type and on the device of the parameters; any real numbers.
        labels: Classes, shape (B,), int64 in 0..C-1; or soft labels, shape (B, C), rows that add up to 1.
        lr: alpha, positive and finite; a number or a tensor of shape ().
        steps: N, at least 1.
        start: :math:`\theta_0`, of shape (P,) in the order of ``model.parameters()``, or by the names of
            ``model.named_parameters()``; by default the parameters of ``model``.
        minibatch: (images, labels, i) -> the images and labels of step i, e.g. chosen or augmented; all by default. It
            is called again in the backward pass and must then return what it returned before.

    Returns:
        :math:`\theta_N`, shape (P,), in the order of ``model.parameters()``.

    Raises:
        ValueError: If an argument is not as said above, or the model has frozen parameters or batch norms in
            evaluation mode.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    alpha = torch.as_tensor(lr, dtype=images.dtype, device=images.device)
    if alpha.ndim or not 0 < alpha.item() < math.inf:
        raise ValueError(f"lr must be one positive and finite number, got {lr}.")
    if frozen := [name for name, part in model.named_parameters() if not part.requires_grad]:
        raise ValueError(f"model must learn all of its parameters, got {frozen[0]} frozen: let it require a gradient.")
    if images.ndim != 4:
        raise ValueError(f"images must be of shape (B, c, h, w), got {tuple(images.shape)}.")
    wanted, got = (f"{each.dtype} on {each.device}" for each in (next(model.parameters(), images), images))
    if got != wanted:
        raise ValueError(f"images must be as the model's parameters, {wanted}, got {got}.")
    network = FlatNetwork.of(model, (images.shape[1], images.shape[2], images.shape[3]))
    _check_labels(labels, len(images), network.num_classes)
    theta = _vector(dict(model.named_parameters()) if start is None else start, network)

    def draw(images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        x, y = (images, labels) if minibatch is None else minibatch(images, labels, step)
        return x[None], y[None]

    loop = InnerLoop(_WithoutFusedAttention(network), SGD(), draw, steps)
    return ExactUnroll()(loop, images, labels, alpha, theta[None])[0]


class _WithoutFusedAttention(Derivatives):
    """Attention by its formula: fused kernels have no second derivative."""

    def loss(self, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return super().loss(theta, images, labels)


def _check_labels(labels: Tensor, count: int, num_classes: int) -> None:
    kind, shape = ("soft labels", (count, num_classes)) if soft(labels) else ("classes", (count,))
    if labels.shape != shape:
        raise ValueError(f"labels must be of shape {shape}, {kind} of {count} images, got {tuple(labels.shape)}.")
    if not soft(labels) and (labels.dtype != torch.int64 or labels.min() < 0 or labels.max() >= num_classes):
        got = f"{labels.dtype} in {labels.min()}..{labels.max()}"
        raise ValueError(f"labels must be int64 in 0..{num_classes - 1}, got {got}.")


def _vector(start: Tensor | Mapping[str, Tensor], network: FlatNetwork) -> Tensor:
    """``start`` as one vector (P,), with its graph."""
    if not isinstance(start, Tensor):
        wanted = network.unflatten(network.initial(Stream(0)))
        if odd := sorted(start.keys() ^ wanted.keys()):
            raise ValueError(f"start must hold each parameter of the model under its name, got it wrong for {odd[0]}.")
        start = torch.cat([start[name].reshape(-1) for name in wanted])
    count = network.num_parameters
    if start.shape != (count,):
        raise ValueError(f"start must hold the {count:,} parameters of the model, got shape {tuple(start.shape)}.")
    return start
