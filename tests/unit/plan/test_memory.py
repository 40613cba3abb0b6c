"""What a plan's memory is made of, by hand. `tests/distributed/test_plan_memory.py` has the ranks of real steps."""

from __future__ import annotations

import pytest

from altup_moe.plan.activations import step_activations
from altup_moe.plan.groups import World
from altup_moe.plan.memory import Memory, rank_memory
from altup_moe.plan.parameters import stage_coordinates
from altup_moe.plan.streams import block_bytes
from tests.unit.plan.test_step import run


def test_a_loss_and_a_layers_backward_pass_are_never_there_at_once() -> None:
    parts = {"weights": 1.0, "gradients": 2.0, "optimizer": 4.0, "activations": 8.0, "stream": 16.0, "messages": 32.0}
    assert Memory(**parts, logits=5.0, layer=3.0).total == 63 + 5
    assert Memory(**parts, logits=5.0, layer=7.0).total == 63 + 7


@pytest.mark.parametrize(("pipeline", "virtual", "messages"), [(1, 1, [0]), (4, 1, [1, 2, 2, 1]), (2, 2, [3, 3])])
def test_messages_that_a_stage_holds(pipeline: int, virtual: int, messages: list[int]) -> None:
    """A gradient for each neighbour; interleaved, an output that waits as well. A message is K blocks."""
    config = run({"pipeline": pipeline, "virtual_pipeline": virtual})
    world = World(config.parallel, pipeline)
    found = [rank_memory(config, world, coordinates) for coordinates in stage_coordinates(config, pipeline)]
    assert [memory.messages for memory in found] == [count * 4 * block_bytes(config) for count in messages]


def test_what_gradients_of_a_layer_take() -> None:
    """Both factors of SwiGLU, in bf16; the gathered input of tensor ranks; rows of experts, twice if they travel."""
    dense, tokens = {"num_experts": 0}, 1024
    assert step_activations(run(moe=dense), 0)[0].gradients == 2 * tokens * 2 * 4096
    assert step_activations(run({"tensor": 2}, moe=dense), 0)[0].gradients == 2 * tokens * (4096 + 1024)
    assert step_activations(run(), 0)[0].gradients == 2 * 2 * tokens * (2 * 2048 + 1024)
    assert step_activations(run({"expert": 2}), 0)[0].gradients == 2 * 2 * tokens * (2 * 2048 + 2 * 1024)
