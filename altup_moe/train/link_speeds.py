"""Which link between nodes is slow: one rank of each node sends to another node's, and the transfers are compared.

What a collective takes says little about a link: all its members wait for the slowest link, and for late ranks. So
ranks with LOCAL_RANK 0 send a few hundred KiB and more by turns, each to the one `shift` nodes further, and wait for
an answer. The shift grows from time to time, so that one slow end shows in another link each time and is told from one
slow pair. No node sends and receives at once.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, median_high
from typing import Any

import torch
import torch.distributed as dist

from altup_moe.parallel.control_collectives import gather_json
from altup_moe.parallel.topology import Topology

FIRST_BYTES, LEAST_BYTES, MOST_BYTES = 1 << 18, 1 << 16, 1 << 26
SHORT, LONG = 0.005, 0.02
"""Seconds of a transfer below which the next one is twice as large, and above which it is half as large."""
JUDGED = 0.001
"""Seconds of a transfer below which a link is never named: that is the time of the hosts, not of the link."""
REPEATS = 3
"""Transfers of a link in one measurement; the fastest counts, as other work only takes time."""
SHARE = 0.005
"""Most of a run's time that goes into this: intervals are left out where it took longer."""
STEADY = 2
"""Measurements in a row that must show the same slow end or pair: one is often a neighbour's work."""
RELEASE = 0.8
"""Share of the threshold below which it is named no longer: a score near the threshold does not flicker."""


@dataclass(frozen=True)
class SlowestLink:
    """What a measurement showed.

    Attributes:
        score: rate of the link that it is compared with over that of the slowest one.
        rate: of the slowest one, 10^6 bytes a second.
        sender: the rank that is named because what its node sends is slow; None if there is none.
        receiver: the rank that is named because what its node receives is slow. With `sender`: it is this pair.
    """

    score: float
    rate: float
    sender: int | None = None
    receiver: int | None = None


class LinkNaming:
    """Which link is named, measurement by measurement. Mutable."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._suspects: frozenset[tuple[str, int]] = frozenset()
        self._times = 0
        self._fastest = 0.0

    @property
    def suspects(self) -> bool:
        """Whether a link was slow, and is not named yet."""
        return 0 < self._times < STEADY

    def measured(self, seconds: Mapping[tuple[int, int], float], size: int) -> SlowestLink:
        """Take the seconds of some links, by (sender, receiver), for so many bytes.

        A link is compared with the median of all; the two of a pair of nodes with the fastest that they ever were.
        """
        rates = {link: size / taken for link, taken in seconds.items()}
        slowest = min(rates, key=lambda link: rates[link])
        self._fastest = max(self._fastest, *rates.values())
        score = (median_high(rates.values()) if len(rates) > 2 else self._fastest) / rates[slowest]
        ends = frozenset({("sender", slowest[0]), ("receiver", slowest[1])})
        least = max(1.0, self.threshold * (RELEASE if self._times >= STEADY else 1.0))
        if score < least or seconds[slowest] < JUDGED:
            self._suspects, self._times = frozenset(), 0
        elif common := self._suspects & ends:
            self._suspects, self._times = common, self._times + 1
        else:
            self._suspects, self._times = ends, 1
        return SlowestLink(score, rates[slowest] / 1e6, **dict(self._suspects if self._times >= STEADY else ()))


def turns(nodes: int, shift: int) -> list[int]:
    """In which turn (0, 1 or 2) each node sends to the one `shift` further: none sends and receives in one turn."""
    length = nodes // math.gcd(nodes, shift)
    found = [0] * nodes
    for first in range(nodes // length):
        for place in range(length):
            last_of_odd = length % 2 == 1 and place == length - 1
            found[(first + place * shift) % nodes] = 2 if last_of_odd else place % 2
    return found


class LinkSpeeds:
    """Measures the links between nodes; off where there is one node."""

    def __init__(self, threshold: float, topology: Topology) -> None:
        self._topology, self._naming = topology, LinkNaming(threshold)
        self._senders: list[int] | None = None
        self._bytes, self._number, self._leave_out = FIRST_BYTES, 0, 0
        self._last = time.monotonic()

    def settle(self) -> SlowestLink | None:
        """At the end of an interval: what was measured, if it was time to. Collective then."""
        device = self._topology.device
        if self._senders is None:
            local = int(os.environ.get("LOCAL_RANK", self._topology.rank))
            self._senders = [rank for rank, place in enumerate(gather_json(local, device)) if place == 0]
        began = time.monotonic()
        interval, self._last = began - self._last, began
        if len(self._senders) < 2:
            return None
        if self._leave_out > 0:
            self._leave_out -= 1
            return None
        shift = 1 + self._number % (len(self._senders) - 1)
        self._number += 1
        mine = self._seconds(self._senders, shift) if self._topology.rank in self._senders else 0.0
        every = gather_json([mine, time.monotonic() - began, interval], device)
        size = self._bytes
        seconds = [every[rank][0] for rank in self._senders]
        self._bytes = _next_size(size, median(seconds))
        links = zip(self._senders, [*self._senders[shift:], *self._senders[:shift]], strict=True)
        found = self._naming.measured(dict(zip(links, seconds, strict=True)), size)
        # Rank 0's clock decides, so that all ranks leave out the same intervals. A suspicion is looked into at once.
        often = math.ceil(every[0][1] / SHARE / max(every[0][2], 1e-3))
        self._leave_out = 0 if self._naming.suspects else often - 1
        return found

    def _seconds(self, senders: list[int], shift: int) -> float:
        """Seconds of the fastest transfer from this rank to the one `shift` further."""
        when, place = turns(len(senders), shift), senders.index(self._topology.rank)
        receiver, source = senders[(place + shift) % len(senders)], senders[place - shift]
        payload = torch.zeros(self._bytes, dtype=torch.uint8, device=self._topology.device)
        answer, fastest = payload[:1].clone(), math.inf
        for turn in range(max(when) + 1):
            if when[place] == turn:
                self._transfer(dist.irecv, answer, receiver)
                for _ in range(REPEATS):
                    began = time.perf_counter()
                    self._transfer(dist.isend, payload, receiver)
                    self._transfer(dist.irecv, answer, receiver)
                    fastest = min(fastest, time.perf_counter() - began)
            if when[place - shift] == turn:
                self._transfer(dist.isend, answer, source)
                for _ in range(REPEATS):
                    self._transfer(dist.irecv, payload, source)
                    self._transfer(dist.isend, answer, source)
        return fastest

    def _transfer(self, operation: Callable[..., Any], tensor: torch.Tensor, peer: int) -> None:
        # As a batch NCCL takes the world's communicator, and makes none for the pair.
        for work in dist.batch_isend_irecv([dist.P2POp(operation, tensor, peer)]):
            work.wait()
        if tensor.is_cuda:
            torch.cuda.synchronize(tensor.device)


def _next_size(size: int, seconds: float) -> int:
    """Bytes of the next transfers, from those of the last ones and their median time."""
    if seconds < SHORT:
        return min(2 * size, MOST_BYTES)
    return max(size // 2, LEAST_BYTES) if seconds > LONG else size
