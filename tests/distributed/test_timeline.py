"""A real asynchronous all-to-all between two ranks, as it is recorded."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from altup_moe.config import RunConfig
from altup_moe.timeline.overlap import overlap_by_step
from altup_moe.timeline.records import Recording
from altup_moe.timeline.spans import current, in_flight, record, span, step, waiting
from altup_moe.timeline.watch import watch
from tests.distributed import gradients
from tests.distributed.cases import micro_batch_count, small, world_size
from tests.distributed.ranks import run_fresh_ranks, run_ranks
from tests.processes import wait_until

pytestmark = pytest.mark.distributed

LATE_S = 0.1
PHASES = ("forward", "backward")


def exchange(overlapped: bool, launched: Path) -> dict[str, Any]:
    """One step: an exchange that rank 1 joins late, and a computation, beside the exchange or after it.

    What happens when does not depend on how busy the machine is: rank 1 joins some time after rank 0 has said that it
    computes, or waits, and a computation beside the exchange lasts until that has landed.
    """
    sent = torch.full((2_000_000,), float(dist.get_rank()))
    received = torch.empty_like(sent)
    with record(dist.get_rank()) as recording, step():
        if dist.get_rank() == 1:
            wait_until(launched.exists, "rank 0", 60)
            time.sleep(LATE_S)
        work = dist.all_to_all_single(received, sent, async_op=True)
        in_flight("dispatch", work)
        if overlapped:
            recorder = current()
            assert recorder is not None
            with span("mix"):
                launched.touch()
                wait_until(lambda: not recorder.flying, "the end of the exchange", 60)
        with waiting("dispatch", work):
            launched.touch()
            work.wait()
        if not overlapped:
            with span("mix"):
                time.sleep(LATE_S)
    assert received.view(2, -1).mean(1).tolist() == [0.0, 1.0]
    return recording.to_dict()


@pytest.mark.parametrize("overlapped", [True, False])
def test_an_exchange_is_seen_in_flight_and_waited_for(overlapped: bool, tmp_path: Path) -> None:
    recordings = [Recording.from_dict(values) for values in run_ranks(2, exchange, overlapped, tmp_path / "launched")]
    (first, wait), (second, _) = (
        [next(s for s in recording.spans if s.kind == kind) for kind in ("flight", "wait")] for recording in recordings
    )
    assert [len([s for s in r.spans if s.kind in ("flight", "wait")]) for r in recordings] == [2, 2]
    assert first.begin_ns < wait.begin_ns
    assert first.begin_ns < first.end_ns <= wait.end_ns
    # It completed during the computation, before anybody waited for it.
    assert (first.end_ns < wait.begin_ns) is overlapped
    # Rank 0's exchange is under way for as long as rank 1 is late: blocked without overlap, computing with it.
    assert second.begin_ns - first.begin_ns > 1e9 * LATE_S
    (report,) = overlap_by_step(recordings[0])
    assert report.exchange_ms == pytest.approx((first.end_ns - first.begin_ns) / 1e6)
    assert report.exchange_ms > 1e3 * LATE_S
    if overlapped:
        assert report.mixing_hidden_ms > 1e3 * LATE_S
    else:
        assert report.mixing_hidden_ms == 0
        assert report.exposed_ms > 1e3 * LATE_S


def watched_step(config: RunConfig) -> tuple[Any, dict[str, Any]]:
    """`layout_step`, recorded, with every layer and its parts watched; the rank's recording beside it."""
    from megatron.core.transformer.transformer_layer import TransformerLayer

    build = gradients.build_model

    def build_and_watch(*args: Any) -> Any:
        chunks = build(*args)
        for layer in [m for chunk in chunks for m in chunk.modules() if isinstance(m, TransformerLayer)]:
            watch(layer, "layer")
            watch(layer.self_attention, "attention")
            watch(layer.mlp, "mlp")
        return chunks

    gradients.build_model = build_and_watch
    with record(dist.get_rank()) as recording:
        result = gradients.layout_step(config)
    return result, recording.to_dict()


@pytest.mark.parametrize("layout", ["pp2-vpp2", "tp2-pp2-ep2"])
def test_a_watched_model_trains_the_same_bits(layout: str) -> None:
    config = small(layout)
    expected = run_ranks(world_size(layout), gradients.layout_step, config)
    watched = run_fresh_ranks(world_size(layout), watched_step, config)
    for (loss, grads), ((got_loss, got), values) in zip(expected, watched, strict=True):
        assert got_loss == loss
        assert [g[:2] for g in got] == [g[:2] for g in grads]
        assert all(np.array_equal(a, b) for (*_, a), (*_, b) in zip(got, grads, strict=True))
        names = ("layer", "attention", "mlp")
        seen = Counter((s.name, s.phase) for s in Recording.from_dict(values).spans if s.name in names)
        calls = config.model.num_layers // 2 * micro_batch_count(config)
        assert seen == {(name, phase): calls for name in names for phase in PHASES}
