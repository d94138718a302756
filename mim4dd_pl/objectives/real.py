"""What hosts without experts take from the real side and from chance."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mim4dd_pl.data.sets import Batch, ImageSet
from mim4dd_pl.networks import FlatNetwork
from mim4dd_pl.randomness import Stream


def real_batch(real: ImageSet, per_class: int, stream: Stream) -> Batch:
    """Random real images, as many of each class, class by class; fewer than ``per_class`` where a class has fewer."""
    return real.batch(real.per_class(min(per_class, real.rarest), stream.at("real").generator()))


def fresh(network: FlatNetwork, streams: Sequence[Stream], like: Tensor) -> Tensor:
    """Parameters of freshly initialised networks, one for each stream, shape (K, P), as ``like`` in type and device."""
    return torch.stack([network.initial(stream.at("student")) for stream in streams]).to(like)
