"""A real asynchronous all-to-all between two ranks, as it is recorded."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from altup_moe.timeline.overlap import measure
from altup_moe.timeline.records import Recording
from altup_moe.timeline.spans import in_flight, record, span, step, waiting
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

COMPUTE_S = 0.3
LATE_S = 0.2


def exchange(overlapped: bool) -> dict[str, Any]:
    """Two steps: one exchange beside some computation or before it, then one that rank 1 joins late."""
    sent = torch.full((2_000_000,), float(dist.get_rank()))
    with record(dist.get_rank()) as recording:
        for late in (False, True):
            received = torch.empty_like(sent)
            dist.barrier()
            with step():
                if late and dist.get_rank() == 1:
                    time.sleep(LATE_S)
                work = dist.all_to_all_single(received, sent, async_op=True)
                in_flight("dispatch", work)
                if not overlapped:
                    with waiting("dispatch", work):
                        work.wait()
                if not late:
                    with span("mix"):
                        time.sleep(COMPUTE_S)
                if overlapped:
                    with waiting("dispatch", work):
                        work.wait()
            assert received.view(2, -1).mean(1).tolist() == [0.0, 1.0]
    return recording.to_dict()


@pytest.mark.parametrize("overlapped", [True, False])
def test_an_exchange_is_seen_in_flight_and_waited_for(overlapped: bool) -> None:
    recordings = [Recording.from_dict(values) for values in run_ranks(2, exchange, overlapped)]
    for recording in recordings:
        flights = [s for s in recording.spans if s.kind == "flight"]
        waits = [s for s in recording.spans if s.kind == "wait"]
        assert len(flights) == len(waits) == 2
        for flight, wait in zip(flights, waits, strict=True):
            assert flight.begin_ns < wait.begin_ns
            assert flight.begin_ns < flight.end_ns <= wait.end_ns
        first, _ = measure(recording)
        if overlapped:
            # It completed during the computation, long before anybody waited for it.
            assert flights[0].end_ns < waits[0].begin_ns
            assert first.mixing_hidden_ms > 0.5 * first.exchange_ms
            assert first.exposed_ms < 0.2 * first.exchange_ms + 1
        else:
            assert first.mixing_hidden_ms == 0
            assert first.exposed_ms > 0.5 * first.exchange_ms
    # In the second step rank 0 waits for rank 1, and says so.
    exposed = [measure(recording)[1].exposed_ms for recording in recordings]
    assert exposed[0] > 900 * LATE_S > exposed[1]
