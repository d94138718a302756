"""Vectors of many numbers as points to look at."""

import torch
from torch import Tensor

from mim4dd_pl.analysis.similarity import gram
from mim4dd_pl.basics.randomness import Stream


def principal_components(vectors: Tensor, count: int) -> Tensor:
    """Coordinates of vectors (N, D) along their ``count`` main directions, up to the sign of each direction.

    Shape (N, min(count, N, D)), float32, by falling variance; from the Gram matrix, as D is far above N.
    """
    values, directions = torch.linalg.eigh(gram(vectors))
    count = min(count, *vectors.shape)
    scores: Tensor = directions * values.clamp(min=0).sqrt()
    return scores.flip(1)[:, :count].float()


def tsne(vectors: Tensor, stream: Stream) -> Tensor:
    """Points of the plane whose neighbours are those of the vectors: t-SNE, started from two principal components.

    Neighbourhoods and clusters mean something, distances between clusters and their sizes do not. The perplexity is 30,
    less where that is more than a third of the vectors.

    Source: van der Maaten & Hinton 2008 (JMLR 9), after 50 principal components as they do.

    Args:
        vectors: Shape (N, D), N at least 3.
        stream: Decides what t-SNE draws.

    Returns:
        Shape (N, 2), float32.
    """
    from sklearn.manifold import TSNE  # slow to import, and needed here only

    components = principal_components(vectors, 50).cpu().numpy()
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    plane = TSNE(perplexity=perplexity, init="pca", random_state=stream.key % 2**32).fit_transform(components)
    return torch.from_numpy(plane)
