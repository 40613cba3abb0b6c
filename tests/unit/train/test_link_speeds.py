"""The slow end of a link is told from a slow pair, noise is named never, and no node sends and receives at once."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from altup_moe.train.link_speeds import LEAST_BYTES, MOST_BYTES, LinkNaming, SlowestLink, _next_size, turns

Slow = Callable[[int, int], bool]


MEGABYTE = 10**6


def seconds(nodes: int, shift: int, slow: Slow) -> dict[tuple[int, int], float]:
    """Of a measurement with a megabyte; node n is rank 8 n, its links do 100 MB/s, or 25 MB/s."""
    links = [(8 * node, 8 * ((node + shift) % nodes)) for node in range(nodes)]
    return {link: 0.04 if slow(*link) else 0.01 for link in links}


@pytest.mark.parametrize("nodes", range(2, 13))
def test_no_node_sends_and_receives_in_one_turn(nodes: int) -> None:
    for shift in range(1, nodes):
        when = turns(nodes, shift)
        assert all(when[node] != when[(node + shift) % nodes] for node in range(nodes))
        assert set(when) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("slow", "sender", "receiver"),
    [(lambda a, b: a == 16, 16, None), (lambda a, b: b == 16, None, 16), (lambda a, b: False, None, None)],
)
def test_a_slow_end_is_named_once_two_of_its_links_were_slow(
    slow: Slow, sender: int | None, receiver: int | None
) -> None:
    naming = LinkNaming(2.0)
    seen = [naming.measured(seconds(4, shift, slow), MEGABYTE) for shift in (1, 2, 3)]
    assert (seen[0].sender, seen[0].receiver) == (None, None)
    for one in seen[1:]:
        assert (one.sender, one.receiver) == (sender, receiver)
        assert one.score == (1.0 if sender is receiver is None else 4.0)


def test_of_two_nodes_the_pair_is_named_beside_its_fastest_rate() -> None:
    naming = LinkNaming(2.0)
    fast, slow, nearly = {(0, 1): 0.011, (1, 0): 0.01}, {(0, 1): 0.025, (1, 0): 0.022}, {(0, 1): 0.017, (1, 0): 0.01}
    seen = [naming.measured(one, MEGABYTE) for one in (fast, slow, slow, nearly, fast)]
    assert [(one.sender, one.receiver) for one in seen] == [(None, None), (None, None), (0, 1), (0, 1), (None, None)]
    assert seen[2] == SlowestLink(2.5, 40.0, 0, 1)


def test_slow_links_without_a_common_end_are_noise() -> None:
    naming = LinkNaming(2.0)
    for turn in range(20):
        here = (0, 8) if turn % 2 else (16, 24)
        found = naming.measured(seconds(4, 1, lambda a, b, here=here: (a, b) == here), MEGABYTE)
        assert (found.sender, found.receiver) == (None, None)


def test_healthy_links_with_noise_are_not_named() -> None:
    draw, naming = random.Random(0), LinkNaming(2.0)
    for number in range(500):
        quiet = seconds(8, 1 + number % 7, lambda a, b: False)
        found = {link: taken * draw.uniform(0.9, 1.6) for link, taken in quiet.items()}
        if number % 10 == 0:
            found[draw.choice(list(found))] *= 10
        one = naming.measured(found, MEGABYTE)
        assert (one.sender, one.receiver) == (None, None)


def test_what_takes_less_than_a_millisecond_is_not_judged() -> None:
    naming = LinkNaming(2.0)
    for _ in range(3):
        found = naming.measured({(0, 1): 0.0009, (1, 0): 0.0001}, MEGABYTE)
        assert (found.score > 8, found.sender, naming.suspects) == (True, None, False)


def test_transfers_grow_until_they_can_be_timed_and_shrink_on_slow_links() -> None:
    assert _next_size(1 << 20, 0.001) == 1 << 21
    assert _next_size(1 << 20, 0.01) == 1 << 20
    assert _next_size(1 << 20, 0.1) == 1 << 19
    assert (_next_size(MOST_BYTES, 0.0), _next_size(LEAST_BYTES, 9.0)) == (MOST_BYTES, LEAST_BYTES)
