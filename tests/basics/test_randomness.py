"""Streams: a function of seed and path, independent of each other and of what was drawn before."""

import torch

from mim4dd_pl.basics.randomness import Stream


def draw(stream: Stream) -> list[float]:
    return torch.rand(4, generator=stream.generator()).tolist()


def test_a_stream_is_a_function_of_seed_and_path() -> None:
    assert draw(Stream(3).at("a", 1).at(2)) == draw(Stream(3).at("a", 1, 2))


def test_streams_of_other_seeds_purposes_and_counters_differ() -> None:
    streams = [
        Stream(0),
        Stream(1),
        Stream(0).at("a"),
        Stream(0).at("a", 1),
        Stream(0).at("a", "1"),
        Stream(0).at("a1"),
    ]
    assert len({stream.key for stream in streams}) == len(streams)


def test_as_global_seeds_inside_and_restores_outside() -> None:
    before = torch.get_rng_state()
    with Stream(0).as_global():
        first = torch.rand(4)
    with Stream(0).as_global():
        second = torch.rand(4)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
