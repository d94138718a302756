"""Which segments of which experts an outer step reads."""

import torch

from mim4dd_pl.objectives import Objective
from mim4dd_pl.population import Experts
from mim4dd_pl.randomness import Stream
from mim4dd_pl.trajectories import Segment, SegmentReader, TrajectoryStore


class SegmentDraw:
    """Draws an expert and a start epoch for each segment, and reads one segment ahead.

    Args:
        store: Finished trajectories.
        experts: How many of them there are.
        objective: Which epochs it reads.
        stream: Decides; the node of a segment is ("segment", step, index, "expert").
        per_step: Segments of a step.
    """

    def __init__(
        self, store: TrajectoryStore, experts: Experts, objective: Objective, stream: Stream, per_step: int
    ) -> None:
        self._store, self._experts, self._objective, self._stream = store, experts, objective, stream
        self._reader = SegmentReader(self.draw, per_step)

    def draw(self, step: int, index: int) -> Segment:
        """Segment ``index`` of ``step``, each of its parts of shape (P,)."""
        generator = self._stream.at("segment", step, index, "expert").generator()
        expert = int(torch.randint(self._experts.num_experts, (), generator=generator))
        epoch = int(torch.randint(self._objective.max_start_epoch, (), generator=generator))
        return self._store.segment(expert, epoch, self._objective.expert_epochs)

    def read(self, step: int, index: int) -> Segment:
        """The same, read while the segment before it was in use."""
        return self._reader.read(step, index)

    def close(self) -> None:
        """End the thread that reads ahead."""
        self._reader.close()
