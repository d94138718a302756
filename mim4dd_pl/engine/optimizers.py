r"""Inner optimisers: how a student moves along its gradient, and how a cotangent comes back.

Every rule is elementwise, :math:`\theta_{i+1} = \theta_i - \alpha\, d_i`, with a direction :math:`d_i` made of the
gradient :math:`g_i` and a state. :meth:`InnerOptimizer.pull_back` is the transpose of the rule: it turns the cotangents
of :math:`d_i` and of the new state into those of :math:`g_i` and of the old state. What it needs of a step is kept in
the forward pass, beside :math:`\theta_i`. All tensors are of shape (K, P): K students at once.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

State = tuple[Tensor, ...]
"""What an optimiser carries from step to step, and what it keeps of one: tensors of shape (K, P)."""


class InnerOptimizer(ABC):
    """A rule theta, state, gradient -> direction, state."""

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in vars(self).items())
        return f"{type(self).__name__}({settings})"

    @abstractmethod
    def initial(self, theta: Tensor) -> State:
        """The state before the first step."""

    @abstractmethod
    def direction(self, state: State, gradient: Tensor, step: int) -> tuple[Tensor, State]:
        """d_i and the new state, differentiable; ``step`` is i, counted from 0."""

    @abstractmethod
    def kept(self, state: State, gradient: Tensor) -> State:
        """What :meth:`pull_back` and :meth:`along` need of a step that ended in ``state``."""

    @abstractmethod
    def pull_back(self, kept: State, to_direction: Tensor, to_state: State, step: int) -> tuple[Tensor, State]:
        """Cotangents of g_i and of the old state, from those of d_i and of the new state."""

    @abstractmethod
    def along(self, kept: State, to_direction: Tensor, s: Tensor, step: int) -> Tensor:
        """<d_i, ``to_direction``> of each student, shape (K,); ``s`` is <g_i, cotangent of g_i>, shape (K,)."""


class SGD(InnerOptimizer):
    r"""Plain gradient descent, :math:`d_i = g_i`; keeps nothing."""

    def initial(self, theta: Tensor) -> State:
        return ()

    def direction(self, state: State, gradient: Tensor, step: int) -> tuple[Tensor, State]:
        return gradient, ()

    def kept(self, state: State, gradient: Tensor) -> State:
        return ()

    def pull_back(self, kept: State, to_direction: Tensor, to_state: State, step: int) -> tuple[Tensor, State]:
        return to_direction, ()

    def along(self, kept: State, to_direction: Tensor, s: Tensor, step: int) -> Tensor:
        return s


class Momentum(InnerOptimizer):
    r"""Heavy-ball momentum as in ``torch.optim.SGD``: :math:`d_i = m_i = \mu\, m_{i-1} + g_i`; keeps :math:`m_i`.

    Args:
        momentum: mu, in [0, 1).
    """

    def __init__(self, momentum: float = 0.9) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}.")
        self.momentum = momentum

    def initial(self, theta: Tensor) -> State:
        return (torch.zeros_like(theta),)

    def direction(self, state: State, gradient: Tensor, step: int) -> tuple[Tensor, State]:
        velocity = self.momentum * state[0] + gradient
        return velocity, (velocity,)

    def kept(self, state: State, gradient: Tensor) -> State:
        return state

    def pull_back(self, kept: State, to_direction: Tensor, to_state: State, step: int) -> tuple[Tensor, State]:
        to_gradient = to_direction + to_state[0]
        return to_gradient, (self.momentum * to_gradient,)

    def along(self, kept: State, to_direction: Tensor, s: Tensor, step: int) -> Tensor:
        return (kept[0] * to_direction).sum(-1)


class Adam(InnerOptimizer):
    r"""Adam with bias correction; keeps m_i, v_i and g_i.

    .. math::

        m_i = \beta_1 m_{i-1} + (1-\beta_1) g_i,\quad v_i = \beta_2 v_{i-1} + (1-\beta_2) g_i^2,\quad
        d_i = \frac{m_i / (1-\beta_1^{i+1})}{\sqrt{v_i / (1-\beta_2^{i+1})} + \epsilon}

    A parameter whose gradient has been exactly zero so far has :math:`v_i = 0`, where the root has no derivative; it
    counts as zero there, as the gradient of :math:`v_i` is.

    Source: Kingma & Ba 2015 (arXiv:1412.6980), Algorithm 1.

    Args:
        beta1: In [0, 1).
        beta2: In [0, 1).
        eps: Positive.
    """

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        if not 0 <= beta1 < 1 or not 0 <= beta2 < 1 or not 0 < eps < float("inf"):
            raise ValueError(f"beta1 and beta2 must lie in [0, 1) and eps be positive, got {beta1}, {beta2} and {eps}.")
        self.beta1, self.beta2, self.eps = beta1, beta2, eps

    def initial(self, theta: Tensor) -> State:
        return torch.zeros_like(theta), torch.zeros_like(theta)

    def direction(self, state: State, gradient: Tensor, step: int) -> tuple[Tensor, State]:
        first = self.beta1 * state[0] + (1 - self.beta1) * gradient
        second = self.beta2 * state[1] + (1 - self.beta2) * gradient.square()
        mean, root = self._corrected(first, second, step)
        return mean / (root + self.eps), (first, second)

    def kept(self, state: State, gradient: Tensor) -> State:
        return *state, gradient

    def pull_back(self, kept: State, to_direction: Tensor, to_state: State, step: int) -> tuple[Tensor, State]:
        first, second, gradient = kept
        mean, root = self._corrected(first, second, step)
        to_mean = to_direction / (root + self.eps)
        to_root = -to_mean * mean / (root + self.eps)
        to_first = to_state[0] + to_mean / (1 - self.beta1 ** (step + 1))
        to_square = torch.where(second > 0, to_root / (2 * root), 0) / (1 - self.beta2 ** (step + 1))
        to_second = to_state[1] + to_square
        to_gradient = (1 - self.beta1) * to_first + 2 * (1 - self.beta2) * gradient * to_second
        return to_gradient, (self.beta1 * to_first, self.beta2 * to_second)

    def along(self, kept: State, to_direction: Tensor, s: Tensor, step: int) -> Tensor:
        mean, root = self._corrected(kept[0], kept[1], step)
        return (mean / (root + self.eps) * to_direction).sum(-1)

    def _corrected(self, first: Tensor, second: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The bias-corrected mean, and the root of the bias-corrected mean square."""
        # The smallest number instead of zero: clamping has the derivative zero there, where the root has none.
        safe = second.clamp(min=torch.finfo(second.dtype).tiny)
        return first / (1 - self.beta1 ** (step + 1)), (safe / (1 - self.beta2 ** (step + 1))).sqrt()
