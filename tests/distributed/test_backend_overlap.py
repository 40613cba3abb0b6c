"""What a backend's windows promise: while rows travel, posted work is done and the other half goes on."""

from __future__ import annotations

import functools
from itertools import groupby
from typing import Any

import pytest
import torch.distributed as dist

from altup_moe.moe.backends import BACKENDS
from altup_moe.timeline.records import Recording, Span
from altup_moe.timeline.spans import record
from tests.backends import installed
from tests.distributed.cases import small, world_size
from tests.distributed.gradients import layout_step
from tests.distributed.ranks import run_ranks

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.parametrize("backend", [installed(name) for name, row in BACKENDS.items() if row.allows_overlap]),
]

WATCHED = ("dispatch", "combine", "mix")
DEFERRED = ["dispatch flight", "mix compute", "dispatch wait"]
BLOCKING = ["dispatch flight", "dispatch wait", "mix compute"]


def _record(config: Any) -> dict[str, Any]:
    with record(dist.get_rank()) as recording:
        layout_step(config)
    return recording.to_dict()


@functools.cache
def spans(layout: str, backend: str, **overlap: Any) -> list[list[Span]]:
    """What each rank recorded in one step, in order; the ranks take it once."""
    config = small(layout, moe={"backend": backend, "layer_freq": 1}, overlap=overlap)
    found = [Recording.from_dict(values).spans for values in run_ranks(world_size(layout), _record, config)]
    return [sorted(one, key=lambda span: span.begin_ns) for one in found]


def events(layout: str, backend: str, phase: str, **overlap: Any) -> list[list[str]]:
    """On each rank, one step's launches ("flight"), beginnings of waits and passes over the stream, in order."""
    return [
        [f"{span.name} {span.kind}" for span in one if span.name in WATCHED and span.phase == phase]
        for one in spans(layout, backend, **overlap)
    ]


def squeezed(seen: list[str]) -> list[str]:
    """Without repetition: a backend may send one tensor or several."""
    return [event for event, _ in groupby(seen)]


def occurrences(part: list[str], seen: list[str]) -> int:
    """How often `part` stands in `seen` without anything in between."""
    return sum(seen[i : i + len(part)] == part for i in range(len(seen)))


@pytest.mark.parametrize("phase", ["forward", "backward"])
@pytest.mark.parametrize("layout", ["ep2", "ep4", "tp2-pp2-ep2"])
def test_mixing_runs_while_rows_travel(layout: str, phase: str, backend: str) -> None:
    """In every layer, both ways. (Where a stage ends there is mixing besides.)"""
    for seen in map(squeezed, events(layout, backend, phase)):
        layers = seen.count("combine flight")
        assert layers
        assert occurrences(DEFERRED, seen) == layers


def test_nothing_runs_while_a_blocking_exchange_travels(backend: str) -> None:
    for seen in map(squeezed, events("ep2", backend, "forward", exchange="blocking")):
        assert occurrences(BLOCKING, seen) == seen.count("combine flight") > 0


@pytest.mark.parametrize("halves", [False, True])
def test_a_half_launches_before_the_other_waits(halves: bool, backend: str) -> None:
    for seen in events("ep2", backend, "forward", microbatch_halves=halves, mixing="inline"):
        for name in ("dispatch", "combine"):
            kinds = [event.split()[1] for event in seen if event.startswith(name)]
            tensors = kinds.count("flight") // seen.count("mix compute")
            at_once = next(len(list(run)) for kind, run in groupby(kinds) if kind == "flight")
            assert at_once == tensors * (2 if halves else 1)
