"""What a host objective is: it trains a student on the synthetic images and says how good the result is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from mim4dd_pl.derivatives import Derivatives, Work
from mim4dd_pl.randomness import Stream
from mim4dd_pl.synthetic import SyntheticImages
from mim4dd_pl.trajectories import Segment


class Match(NamedTuple):
    """A host's answer for K segments.

    Args:
        loss: Of each segment, shape (K,), with a graph to the synthetic images and the student's learning rate.
        student: Parameters of the networks that saw the synthetic images, shape (K, P), with the same graph.
        expert: Parameters of the networks that saw the real images, shape (K, P).
    """

    loss: Tensor
    student: Tensor
    expert: Tensor


class Objective(ABC):
    """A host: what the synthetic images should match.

    Attributes:
        max_start_epoch: Segments start at an epoch t in 0..max_start_epoch-1.
        expert_epochs: M; segments end at t + M.
        unroll_steps: N; inner steps of a student.
    """

    max_start_epoch: int
    expert_epochs: int
    unroll_steps: int

    @property
    def last_epoch(self) -> int:
        """The latest expert epoch that is ever read."""
        return self.max_start_epoch - 1 + self.expert_epochs

    @abstractmethod
    def check(self, num_images: int) -> None:
        """Raise ValueError if the settings cannot work with so many synthetic images."""

    @abstractmethod
    def work(self, num_images: int) -> Work:
        """What one segment asks of the derivatives."""

    @abstractmethod
    def __call__(
        self, derivatives: Derivatives, synthetic: SyntheticImages, segments: Segment, streams: Sequence[Stream]
    ) -> Match:
        """Match K segments of experts, each as if it were alone.

        Args:
            derivatives: Of the students' loss.
            synthetic: Images, labels and student learning rate to learn.
            segments: Expert parameters at epochs t and t + M, each of shape (K, P).
            streams: Decide minibatches and augmentation, one for each segment.
        """
