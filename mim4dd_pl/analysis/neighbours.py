"""Whether a learned set repeats real images, varies within its classes, and keeps them apart: distances of vectors.

The vectors are pixels or features of images, compared by their Euclidean distance; shapes (number of images, D). All
numbers are ratios or fractions, so the scale of the vectors drops out.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class Neighbours(NamedTuple):
    """The nearest real image of each learned one."""

    distance: Tensor  # to it, shape (S,)
    rows: Tensor  # which real image it is, shape (S,), int64
    typical: Tensor  # median distance of real images from their own nearest neighbours among the others, shape ()

    @property
    def ratio(self) -> Tensor:
        """Zero for a copy, one for an image that is as far from the real ones as they are from each other.

        Not finite where most real images have a copy, so that nothing is usual.
        """
        return self.distance / self.typical


def nearest(queries: Tensor, own: Tensor, chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Distance of each query from its nearest vector among ``chunks``, and the number of that vector.

    Candidates are found by products of matrices, whose rounding hides small distances; theirs are then computed anew,
    so that a copy is at distance zero.

    Args:
        queries: Shape (Q, D).
        own: Number of the vector that a query itself is and that does not count, -1 for none; shape (Q,), int64.
        chunks: All vectors in order, each of shape (n_i, D).

    Returns:
        Both of shape (Q,); infinite and -1 where there is no vector.
    """
    best = queries.new_full((len(queries),), torch.inf)
    index = torch.full_like(own, -1)
    start = 0
    for chunk in chunks:
        # |q - x|^2 less the |q|^2 that all candidates of a query share.
        squares = torch.addmm(chunk.square().sum(1), queries, chunk.T, alpha=-2)
        here = ((own >= start) & (own < start + len(chunk))).nonzero().squeeze(1)
        squares[here, own[here] - start] = torch.inf
        value, candidate = squares.min(1)
        distance = torch.where(value < torch.inf, (queries - chunk[candidate]).norm(dim=1), torch.inf)
        nearer = distance < best
        best = torch.where(nearer, distance, best)
        index = torch.where(nearer, candidate + start, index)
        start += len(chunk)
    return best, index


def find_neighbours(learned: Tensor, some: Tensor, rows: Tensor, chunks: Iterable[Tensor]) -> Neighbours:
    """The nearest real image of each learned one, beside what is usual among real images.

    Args:
        learned: Shape (S, D).
        some: Real images that say what is usual, shape (R, D).
        rows: Their numbers among the real images, shape (R,), int64.
        chunks: All real images in order, each of shape (n_i, D); at least two in all.
    """
    size = len(learned)
    own = torch.cat([rows.new_full((size,), -1), rows])
    distance, index = nearest(torch.cat([learned, some]), own, chunks)
    return Neighbours(distance[:size], index[:size], distance[size:].median())


def mean_pairwise_distance(vectors: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    r"""Mean distance of the images of a class from each other.

    .. math:: \frac{2}{n(n-1)} \sum_{i < j} \|x_i - x_j\|

    A mean over pairs: whatever their number n, random images of a class have the same on average. Of vectors (N, D) and
    their classes (N,) in 0..C-1; shape (C,), NaN for a class with less than two images.
    """
    return torch.stack([torch.pdist(vectors[labels == label]).mean() for label in range(num_classes)])


def neighbour_overlap(vectors: Tensor, labels: Tensor) -> Tensor:
    """Fraction of the images whose nearest neighbour among the others is of another class.

    Only images that have another one of their class count: zero where classes are apart, 1 - (n - 1) / (N - 1) on
    average where N images lie anyhow with n in each class, NaN where no class has two. Shape (), of (N, D) and (N,).
    """
    _, index = nearest(vectors, torch.arange(len(vectors), device=vectors.device), [vectors])
    counts = (labels[:, None] == labels).sum(1) > 1
    return (labels[index] != labels)[counts].double().mean()


def mean_overlap(vectors: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> Tensor:
    """Fraction of the images whose nearest class mean of real images is another class's; 1 - 1/C by chance.

    Images of a class without real ones do not count; NaN where none counts. Shape (), of learned (S, D) and (S,), real
    (R, D) and (R,).
    """
    present = real_labels.unique()
    means = torch.stack([real[real_labels == label].mean(0) for label in present])
    _, index = nearest(vectors, torch.full_like(labels, -1), [means])
    wrong: Tensor = present[index] != labels
    return wrong[torch.isin(labels, present)].double().mean()
