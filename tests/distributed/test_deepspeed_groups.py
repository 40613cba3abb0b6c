"""DeepSpeed sees Megatron's groups: its table, its mpu, and its gathering of tokens over tensor ranks."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from altup_moe.config import ParallelConfig
from tests.distributed.cases import LAYOUTS, world_size
from tests.distributed.ranks import run_ranks

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed is not installed"),
]


def _see(parallel: ParallelConfig) -> None:
    import torch
    import torch.distributed as dist

    from altup_moe.parallel.deepspeed_groups import expert_group_name, use_deepspeed
    from altup_moe.parallel.topology import topology

    with topology(parallel) as topo:
        # A second run in one process meets the groups of the first.
        deepspeed = use_deepspeed(use_deepspeed(topo) and topo)
        table, mappings = deepspeed.utils.groups, deepspeed.moe.mappings
        name, ours = expert_group_name(topo), topo.groups
        assert name == f"ep_size_{parallel.expert}"
        for theirs, ranks, group in (
            (table._get_expert_parallel_group(name), table._get_expert_parallel_group_ranks(name), ours.ep),
            (
                table._get_expert_data_parallel_group(name),
                table._get_expert_data_parallel_group_ranks(name),
                ours.expt_dp,
            ),
            (table._get_data_parallel_group(), table._get_data_parallel_group_ranks(), ours.dp_cp),
        ):
            assert theirs is group
            assert ranks == dist.get_process_group_ranks(group)
        assert table._get_model_parallel_world_size() == ours.mp.size()
        assert table.mpu.get_tensor_model_parallel_rank() == topo.tensor_rank
        assert not hasattr(table.mpu, "initialize_sequence_parallel")
        assert not hasattr(table.mpu, "get_sequence_parallel_world_size")
        assert table._get_expert_model_parallel_world_size() == parallel.expert_tensor
        for dim in (0, 1, 2):
            whole = torch.arange(48.0).view(2, 4, 6)
            mine = whole.chunk(topo.tensor_size, dim)[topo.tensor_rank]
            assert torch.equal(mappings._gather_tokens(mine, dim), whole)


@pytest.mark.parametrize("layout", ["one", "ep2", "tp2", "tp2-ep2", "cp2", "dp4-ep2-etp2"])
def test_deepspeed_has_our_groups(layout: str) -> None:
    run_ranks(world_size(layout), _see, LAYOUTS[layout])
