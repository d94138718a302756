"""Principal components and the plane of t-SNE."""

import torch

from mim4dd_pl.analysis.embedding import principal_components, tsne
from mim4dd_pl.basics.randomness import Stream
from tests.conftest import randn


def test_principal_components_are_those_of_the_singular_values(stream: Stream) -> None:
    vectors = randn(stream, 6, 10) + 3
    u, s, _ = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False)
    torch.testing.assert_close(principal_components(vectors, 3).abs(), (u * s)[:, :3].abs().float())


def test_all_components_keep_all_distances(stream: Stream) -> None:
    for shape in ((5, 9), (9, 4)):
        vectors = randn(stream, *shape, dtype=torch.float32)
        components = principal_components(vectors, 50)
        assert components.shape[1] == min(shape)
        torch.testing.assert_close(torch.pdist(components), torch.pdist(vectors))


def test_tsne_keeps_groups_together_and_repeats_itself(stream: Stream) -> None:
    labels = torch.arange(3).repeat_interleave(8)
    vectors = randn(stream, 24, 70, dtype=torch.float32) + 30 * torch.eye(3, 70)[labels]
    plane = tsne(vectors, Stream(1))
    assert torch.equal(plane, tsne(vectors, Stream(1)))
    distances = torch.cdist(plane, plane).fill_diagonal_(torch.inf)
    assert torch.equal(labels[distances.argmin(1)], labels)


def test_a_plane_of_three_vectors_exists() -> None:
    assert tsne(torch.eye(3), Stream(0)).shape == (3, 2)
