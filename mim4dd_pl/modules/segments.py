"""Which segments of which experts an outer step reads."""

import torch

from mim4dd_pl.objectives import Epochs
from mim4dd_pl.population import Experts
from mim4dd_pl.randomness import Stream
from mim4dd_pl.trajectories import Segment, SegmentReader, TrajectoryStore


class SegmentDraw:
    """Draws an expert and a start epoch for each segment, and reads one segment ahead.

    Args:
        store: Finished trajectories.
        experts: How many of them there are.
        epochs: Which of their epochs.
        stream: Decides; the node of a segment is ("segment", step, index, "expert").
        numbers: Of the segments of a step that are read here.
    """

    def __init__(
        self, store: TrajectoryStore, experts: Experts, epochs: Epochs, stream: Stream, numbers: range
    ) -> None:
        self._store, self._experts, self._epochs, self._stream = store, experts, epochs, stream
        self._reader = SegmentReader(self.draw, numbers)

    def draw(self, step: int, index: int) -> Segment:
        """Segment ``index`` of ``step``, each of its parts of shape (P,)."""
        generator = self._stream.at("segment", step, index, "expert").generator()
        expert = int(torch.randint(self._experts.num_experts, (), generator=generator))
        starts = self._epochs.starts(step)
        epoch = starts[int(torch.randint(len(starts), (), generator=generator))]
        return self._store.segment(expert, epoch, self._epochs.expert_epochs)

    def read(self, step: int, index: int) -> Segment:
        """The same, read while the segment before it was in use."""
        return self._reader.read(step, index)

    def close(self) -> None:
        """End the thread that reads ahead."""
        self._reader.close()
