"""The trajectory buffers of a distillation: where on an expert's way each segment of an outer step starts and ends."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mim4dd_pl.stored.trajectories import Segment


class SegmentBuffers(nn.Module):
    """Room for T segments on the device of the module; not kept in checkpoints.

    Args:
        count: T, the segments of an outer step, at least 1.
        num_parameters: P.

    Attributes:
        start: Expert parameters at epoch t, shape (T, P).
        target: Expert parameters at epoch t + M, shape (T, P).
    """

    start: Tensor
    target: Tensor

    def __init__(self, count: int, num_parameters: int) -> None:
        super().__init__()
        if count < 1:
            raise ValueError(f"model.segments_per_step must be at least 1, got {count}.")
        self.register_buffer("start", torch.empty(count, num_parameters), persistent=False)
        self.register_buffer("target", torch.empty(count, num_parameters), persistent=False)

    def load(self, segments: Sequence[Segment]) -> Segment:
        """At most T segments, each of shapes (P,), as one of shapes (len(segments), P)."""
        for row, segment in enumerate(segments):
            self.start[row].copy_(segment.start)
            self.target[row].copy_(segment.target)
        return Segment(self.start[: len(segments)], self.target[: len(segments)])
