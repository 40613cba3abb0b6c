"""What full recomputation keeps of the wide stream, and that the tape rebuilds exactly what was."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from altup_moe.model.build import build_chunk, set_weights
from altup_moe.model.recompute import Tape, Travelling
from altup_moe.parallel.topology import Topology
from tests.distributed.cases import micro_batch, skewed, small

LAYERS, WIDTH = 9, 8


def blocks_kept(topo: Topology, width: int, mixing: str) -> float:
    """Blocks [S, B, D] that are still held after a forward pass with full recomputation, per layer."""
    config = small(
        "one",
        model={"num_layers": LAYERS, "seq_length": 256},
        altup={"width": width},
        moe={"num_experts": 0},
        train={"recompute": "full"},
        overlap={"mixing": mixing},
    )
    chunk = build_chunk(config, topo, None).train()
    set_weights([chunk], config, topo, skewed)
    tokens, labels = micro_batch(config, 0)
    chunk(tokens, labels).sum().backward()  # what is allocated once is not counted
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        loss = chunk(tokens, labels)
    held = sum(event.self_cpu_memory_usage for event in found.events())
    loss.sum().backward()
    block = 256 * config.train.micro_batch_size * config.model.hidden_size * 4
    return held / block / LAYERS


def test_deferred_recomputation_keeps_one_block_a_layer(alone: Topology) -> None:
    """Inline keeps the stream before every layer: K blocks. Deferred: y, and 3 states of K + 2 for 9 layers."""
    head = blocks_kept(alone, 1, "inline") - 1  # the loss, the embedding, rotary tables: the same for all
    inline = blocks_kept(alone, WIDTH, "inline") - head
    deferred = blocks_kept(alone, WIDTH, "deferred") - head
    assert inline > 0.9 * WIDTH
    assert deferred < 1 + (WIDTH + 2) / 3 + 1


@pytest.mark.parametrize("together", [1, 2])
def test_the_tape_rebuilds_states_from_outputs(together: int) -> None:
    """Steps that are recomputed one by one, or in twos."""

    def mix(index: int, state: Travelling, y: torch.Tensor) -> Travelling:
        blocks, weights = state.blocks * (index + 2), state.weights + y
        return Travelling(blocks, y, y + state.u, weights, state.y, state.through - y)

    states = [Travelling(torch.ones(2), *(torch.ones(1) for _ in Travelling._fields[1:]))]
    tape = Tape(3, mix)
    for first in range(3, 7, together):
        outputs = {index: torch.full((1,), float(index)) for index in range(first, first + together)}
        tape.note(first, tuple(states[first - 3]), [outputs])
        for index, y in outputs.items():
            states.append(mix(index, states[-1], y))
    for first in reversed(range(3, 7, together)):
        (rebuilt,) = tape.state_before(first)
        assert all(torch.equal(a, b) for a, b in zip(rebuilt, states[first - 3], strict=True))
