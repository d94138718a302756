"""What a host objective is: it says how far networks that saw the synthetic images are from what they should be."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from mim4dd_pl.basics.randomness import Stream
from mim4dd_pl.data.sets import ImageSet
from mim4dd_pl.engine.derivatives import Derivatives, Work
from mim4dd_pl.objectives.synthetic import TrainingImages
from mim4dd_pl.stored.segments import Epochs
from mim4dd_pl.stored.trajectories import Segment


class Match(NamedTuple):
    """A host's answer for K segments.

    Args:
        loss: Of each segment, shape (K,), with a graph to the synthetic images, their soft labels and the student's
            learning rate, as far as the host depends on them.
        student: Parameters of the networks that saw the synthetic images, shape (K, P), with the same graph.
        expert: Parameters of networks trained on real images, shape (K, P); None for hosts that read none.
    """

    loss: Tensor
    student: Tensor
    expert: Tensor | None


class Scene:
    """What a host may look at beside the synthetic images, for K segments of an outer step.

    Args:
        step: Decides what the segments of an outer step share.
        streams: Decide minibatches, augmentation and fresh networks, one for each segment.
        real: The training images, on the device; asked for without being given, a ValueError.
        segments: Expert parameters at epochs t and t + M, each of shape (K, P); likewise.
    """

    def __init__(
        self, step: Stream, streams: Sequence[Stream], real: ImageSet | None = None, segments: Segment | None = None
    ) -> None:
        self.step, self.streams = step, streams
        self._real, self._segments = real, segments

    @property
    def real(self) -> ImageSet:
        if self._real is None:
            raise ValueError("This host reads real images: give them to the scene as real.")
        return self._real

    @property
    def segments(self) -> Segment:
        if self._segments is None:
            raise ValueError("This host reads experts: give their parameters to the scene as segments.")
        return self._segments


class Objective(ABC):
    """A host: what the synthetic images should match.

    Attributes:
        epochs: Which epochs of experts it reads; None if it reads none.
    """

    epochs: Epochs | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in vars(self).items())})"

    @property
    def reads_experts(self) -> bool:
        """Whether it looks at trajectories of experts."""
        return self.epochs is not None

    def check(self, images_per_class: int, num_classes: int) -> None:
        """Raise ValueError if the settings cannot work with so many synthetic images."""
        return

    @abstractmethod
    def work(self, images_per_class: int, num_classes: int) -> Work:
        """What one segment asks of the derivatives, on average."""

    def shortened(self, steps: int, batch_size: int) -> "Objective":
        """A smaller copy to measure: at most so many inner steps, each on so many synthetic images; itself without."""
        return self

    @abstractmethod
    def __call__(self, derivatives: Derivatives, synthetic: TrainingImages, scene: Scene) -> Match:
        """Match K segments, each as if it were alone.

        Args:
            derivatives: Of the students' loss.
            synthetic: Images, labels and student learning rate to learn.
            scene: The real side, and what decides.
        """
