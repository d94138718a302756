"""Counter-based randomness: every random number is a function of (seed, purpose, counters).

A :class:`Stream` names a place in a tree of seeds. Nothing is ever "the next draw", so a resumed run and a run on
another number of processes draw what the uninterrupted run on one process draws, without storing generator states.
Draws are made on the CPU and are the same whatever device computes.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Stream:
    """A node of the tree of seeds.

    ``Stream(seed).at("segment", step, index)`` is always the same node, whatever was drawn before.

    Args:
        seed: The seed of the run.
        path: Purposes and counters from the root to this node.
    """

    seed: int
    path: tuple[str | int, ...] = ()

    def at(self, *path: str | int) -> "Stream":
        """The node below this one that ``path`` leads to."""
        return Stream(self.seed, self.path + path)

    @property
    def key(self) -> int:
        """63 bits that identify this node (BLAKE2b of seed and path).

        torch's CPU generator takes 32 of them: among the 150,000 nodes of a long run, two or three pairs draw alike by
        chance.
        """
        digest = hashlib.blake2b(repr((self.seed, *self.path)).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def generator(self) -> torch.Generator:
        """A fresh CPU generator at the start of this node's stream."""
        return torch.Generator().manual_seed(self.key)

    @contextmanager
    def as_global(self) -> Iterator[None]:
        """Seed torch's global CPU generator from this node inside the block and restore it after.

        For code that accepts no generator: ``torch.nn.init`` and the constructors of layers.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.key)
            yield
