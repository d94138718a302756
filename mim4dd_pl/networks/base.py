"""What distillation asks of a network: classify, and show its layers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mim4dd_pl.basics.identity import settings_of, words
from mim4dd_pl.basics.shapes import ImageShape


class Network(nn.Module, ABC):
    """A classifier of images that can show one feature map per block.

    Subclasses are built as ``Class(image_shape, num_classes, **settings)`` and keep each setting as an attribute of the
    same name, which is how stored trajectories recognise them. They hold parameters and no buffers: those of a batch
    norm stay empty.
    """

    def settings(self) -> dict[str, Any]:
        """The arguments of the constructor after ``num_classes``, by name."""
        return settings_of(self, after=2)

    def extra_repr(self) -> str:
        return words(self.settings())

    @abstractmethod
    def layers(self, images: Tensor) -> tuple[Tensor, ...]:
        """Feature maps after each block, shallow to deep, each (B, c_k, h_k, w_k); ``images`` is (B, c, h, w)."""

    def layers_and_logits(self, images: Tensor) -> tuple[Tensor, ...]:
        """The maps of :meth:`layers`, then the logits. The networks here need one pass for both, this default two."""
        return (*self.layers(images), self(images))

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (B, C) for ``images`` of shape (B, c, h, w)."""


NetworkFactory = Callable[[ImageShape, int], Network]
"""(image_shape, num_classes) -> a freshly initialised network."""
