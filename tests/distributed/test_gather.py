"""Whole weights on rank 0, whatever layout holds them."""

from __future__ import annotations

import pytest
import torch

from altup_moe.config import RunConfig
from altup_moe.parallel.parameter_names import global_shapes
from tests.distributed.cases import skewed, small, small_t5
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

BUFFERS = {"score_function": "sigmoid", "expert_bias_update_rate": 0.01}
CASES: dict[str, list[RunConfig]] = {
    "2 ranks": [
        small("pp2-vpp2", moe=BUFFERS),
        small("cp2", moe={"backend": "torch"}),
        small("tp2-ep1", train={"precision": "bf16"}),
        small("pp2-uneven", model={"share_embeddings_and_output_weights": True}),
        small_t5("tp2-ep2"),
    ],
    "4 ranks": [small("dp4-ep2-etp2", moe={"shared_expert_size": 8}), small("tp2-pp2-ep2", altup={"recycled": False})],
}


def gathered(configs: list[RunConfig]) -> list[tuple[str, bool]]:
    """On a rank: tensors that rank 0 has not got as they were set by global name; twice, with other values."""
    from altup_moe.checkpoint.gather import WeightGatherer
    from altup_moe.checkpoint.state import local_tensors
    from altup_moe.model.build import bare_chunks, named_tensors
    from altup_moe.parallel.topology import topology

    wrong = []
    for config in configs:
        with topology(config.parallel) as topo:
            chunks = list(bare_chunks(config, topo, skewed))
            gatherer = WeightGatherer(topo)
            shapes = global_shapes(config)
            for factor in (1.0, 2.0):
                found = (
                    {name: torch.full(shape, torch.nan) for name, shape in shapes.items()} if topo.is_first else None
                )
                gatherer.gather(local_tensors(named_tensors(chunks, config, topo), None), found)
                for name, shape in shapes.items() if found is not None else ():
                    value = skewed(name, shape, tuple((0, n) for n in shape), config)
                    half = config.train.precision == "bf16" and ".altup." not in name
                    value = value.bfloat16().float() if half else value
                    if not torch.equal(found[name], factor * value):
                        wrong.append((name, bool(found[name].isnan().any())))
                with torch.no_grad():
                    for entry in named_tensors(chunks, config, topo):
                        entry.tensor.mul_(2)
    return wrong


@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_those_that_were_set(case: str) -> None:
    ranks = int(case[0])
    layouts = [config.parallel for config in CASES[case]]
    assert len(layouts) == len(set(layouts)), "each layout once"
    assert run_ranks(ranks, gathered, CASES[case]) == [[]] * ranks
