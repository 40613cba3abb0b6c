"""Which of torch's kernels attention takes: a flash kernel, as long as nothing but the causal mask is asked for."""

from __future__ import annotations

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from altup_moe.model.build import build_chunk, set_weights
from altup_moe.parallel.topology import Topology
from tests.distributed.cases import micro_batch, skewed, small


class Operations(TorchDispatchMode):
    """The names of all operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", [{}, {"num_query_groups": 4}, {"qk_layernorm": True, "kv_channels": 12}])
def test_attention_is_a_flash_kernel(alone: Topology, model: dict, precision: str) -> None:
    """Grouped queries too: keys and values are not repeated, and scores are never whole."""
    config = small("one", model={"num_layers": 1, **model}, moe={"num_experts": 0}, train={"precision": precision})
    chunk = build_chunk(config, alone, None).train()
    set_weights([chunk], config, alone, skewed)
    with Operations() as ran:
        chunk(*micro_batch(config, 0)).sum().backward()
    attention = sorted(name.split(".")[1] for name in ran.names if "attention" in name)
    flash = "_scaled_dot_product_flash_attention_for_cpu"
    assert attention == [flash, f"{flash}_backward"]
    assert not any("repeat_interleave" in name for name in ran.names)
