"""What the parts of a layer are built of."""

from __future__ import annotations

from megatron.core.tensor_parallel import RowParallelLinear

from altup_moe.model.overlapped_reduce_scatter import OverlappedRowParallelLinear
from altup_moe.model.specs import layer_spec
from altup_moe.model.transformer_config import transformer_config
from tests.distributed.cases import small


def test_each_branch_of_its_own_has_a_window_for_its_mixing_under_tensor_parallelism() -> None:
    """Around whole layers attention posts nothing."""
    for level, attention in (("layer", RowParallelLinear), ("branch", OverlappedRowParallelLinear)):
        config = transformer_config(small("tp2", altup={"level": level}, moe={"num_experts": 0}))
        slots = layer_spec(config, 0, None).submodules
        assert slots.self_attention.submodules.linear_proj is attention
        assert slots.mlp.submodules.linear_fc2 is OverlappedRowParallelLinear
