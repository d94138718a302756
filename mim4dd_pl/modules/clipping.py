"""How long the pixel gradient of an outer step may be."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


def clip_norm(gradient: Tensor, max_norm: float | Tensor) -> Tensor:
    """``gradient``, shortened to length ``max_norm`` if it is longer; any shape."""
    shortened: Tensor = gradient * (max_norm / gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny)).clamp(max=1)
    return shortened


class Clip(nn.Module, ABC):
    """Shortens a gradient, keeps its direction."""

    @abstractmethod
    def forward(self, gradient: Tensor) -> Tensor:
        """The gradient of a step, of any shape; steps come in order."""


class FixedClip(Clip):
    """A longest length.

    Args:
        max_norm: That length, positive.
    """

    def __init__(self, max_norm: float) -> None:
        super().__init__()
        if not 0 < max_norm < math.inf:
            raise ValueError(f"model.image_gradient_clip must be positive and finite, got {max_norm}.")
        self.max_norm = max_norm

    def forward(self, gradient: Tensor) -> Tensor:
        return clip_norm(gradient, self.max_norm)


class MovingClip(Clip):
    r"""A longest length that follows the gradients of the run: their exponential moving average, times a factor.

    .. math:: c_s = \gamma\, e_{s-1},\qquad e_s = d\, e_{s-1} + (1-d) \min(\|g_s\|, c_s)

    The first gradient is not clipped. The average is of clipped lengths, so a single spike does not lift it.

    Source: the moving average of gradient norms is that of Feng et al. 2024 (arXiv:2311.07025), Section 4, who do not
    state the constants.

    Args:
        factor: gamma, at least 1.
        decay: d, in [0, 1).
    """

    average: Tensor

    def __init__(self, factor: float = 2.0, decay: float = 0.9) -> None:
        super().__init__()
        if not 1 <= factor < math.inf or not 0 <= decay < 1:
            raise ValueError(
                "model.image_gradient_clip takes a factor of at least 1 and a decay in [0, 1), got "
                f"{factor} and {decay}."
            )
        self.factor, self.decay = factor, decay
        self.register_buffer("average", torch.tensor(0.0))  # 0 before the first step

    def forward(self, gradient: Tensor) -> Tensor:
        length = gradient.norm()
        longest = torch.where(self.average > 0, self.factor * self.average, length)
        kept = length.minimum(longest)
        self.average.copy_(torch.where(self.average > 0, self.decay * self.average + (1 - self.decay) * kept, kept))
        return clip_norm(gradient, longest)
