"""Gradients that are no numbers, or whose squares are none: the step is skipped on all ranks and changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from importlib.util import find_spec

import pytest

from altup_moe.config import RunConfig
from tests.distributed.cases import small
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

MOE = {"score_function": "sigmoid", "expert_bias_update_rate": 0.01, "load_balancing_type": "global_aux_loss"}
"""Experts' biases and loads are part of what a skipped step leaves alone."""
UNCLIPPED = {"clip_grad": 0.0, "warmup_steps": 0}


def _ways(engine: str) -> list[RunConfig]:
    """On two ranks. Rank 1's experts are 2 and 3: what is wrong with them is only on that rank."""
    clipped = small("ep2", moe=MOE, optim={"warmup_steps": 0})
    plain = small("ep2", moe=MOE, optim=UNCLIPPED)
    if engine == "megatron":
        half = small("ep2", moe=MOE, optim=UNCLIPPED, train={"precision": "bf16"})
        shards = replace(plain, parallel=replace(plain.parallel, distributed_optimizer=True))
        half_shards = replace(half, parallel=replace(half.parallel, distributed_optimizer=True))
        factored = small("ep2", moe=MOE, optim={**UNCLIPPED, "optimizer": "adafactor"})
        return [clipped, plain, half, shards, half_shards, factored]
    dense = small("dp2", moe={"num_experts": 0}, optim=UNCLIPPED)
    stages = [(plain, 1), (clipped, 2), (plain, 2), (dense, 3)]
    return [
        replace(
            config,
            train=replace(config.train, engine="deepspeed"),
            parallel=replace(config.parallel, zero_stage=stage),
        )
        for config, stage in stages
    ]


def _poisoned(configs: list[RunConfig]) -> None:
    for config in configs:
        _poison(config)


def _poison(config: RunConfig) -> None:
    import torch

    from altup_moe.checkpoint.state import local_tensors, optimizer_steps
    from altup_moe.model.build import named_tensors
    from altup_moe.parallel.topology import topology
    from altup_moe.train.batches import Batch
    from altup_moe.train.engine import build_engine
    from altup_moe.train.step import train_step

    with topology(config.parallel) as topo:
        engine = build_engine(config, topo)
        tokens = torch.arange(32).view(2, 16) % config.model.vocab_size
        batches = [Batch(tokens, tokens.roll(-1, 1), torch.ones(2, 16)) for _ in range(2)]

        def state() -> dict[str, torch.Tensor]:
            """Weights, routers' state and moments, whatever a checkpoint would hold of them."""
            held = local_tensors(named_tensors(engine.chunks, config, topo), engine.optimizer)
            return {f"{one.part}": one.tensor.detach().clone() for one in held}

        assert not train_step(engine, batches, config, topo).skipped
        before, updates = state(), optimizer_steps(engine.optimizer)
        assert any("exp_avg" in name for name in before)
        ends = ("input_layernorm.weight", "experts.0.linear_fc1.weight" if config.moe.num_experts else "fc2.weight")
        for end in ends:
            weight = next(e.tensor for e in named_tensors(engine.chunks, config, topo) if e.name.endswith(end))
            # What is finite may have squares that are not: a second moment would be infinite.
            for factor in (math.nan, math.inf, 1e25):
                # On one rank only: the others must hear of it.
                hook = weight.register_hook(lambda grad, by=factor: grad * by) if topo.rank == 1 else None
                result = train_step(engine, batches, config, topo)
                assert result.skipped, (end, factor)
                assert "gradient norm" in result.reason
                after = state()
                assert not [name for name, tensor in before.items() if not torch.equal(after[name], tensor)]
                assert optimizer_steps(engine.optimizer) == updates
                if hook is not None:
                    hook.remove()
        result = train_step(engine, batches, config, topo)
        assert not result.skipped
        assert 0 < result.grad_norm < 100
        after = state()
        assert not [name for name, tensor in after.items() if not torch.isfinite(tensor.double()).all()]
        changed = ("input_layernorm.weight", "down_proj.weight")
        for part in (*changed, "expert_bias", "expert_load") if config.moe.num_experts else changed:
            assert any(part in name and not torch.equal(after[name], before[name]) for name in before), part


ENGINES = [
    "megatron",
    pytest.param("zero", marks=pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed is not installed")),
]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_with_bad_gradients_changes_nothing_on_any_rank(engine: str) -> None:
    run_ranks(2, _poisoned, _ways(engine))
