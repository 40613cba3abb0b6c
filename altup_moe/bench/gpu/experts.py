"""Expert backends over a dense MLP of equal active FLOPs, and tokens a second against transformers' Mixtral."""

from __future__ import annotations

from altup_moe.bench.bench_experts import measure_experts
from altup_moe.bench.bench_train import COMPILED_STEP, OUR_STEP, THROUGHPUT_GOAL, measure_train
from altup_moe.bench.expert_rivals import missing
from altup_moe.bench.gpu.results import Figure, Found
from altup_moe.bench.gpu.sizes import Sizes
from altup_moe.bench.options import ExpertsBench, TrainBench
from altup_moe.config import ParallelConfig
from altup_moe.parallel.topology import topology


def experts(sizes: Sizes) -> Found:
    """Every backend that is installed, balanced and lopsided, in bf16."""
    layer = sizes.expert_layer
    bench = ExpertsBench(
        hidden_size=layer.hidden,
        ffn_hidden_size=layer.ffn,
        moe_experts=layer.experts,
        tokens=layer.experts * layer.rows // 2,
        dtype="bf16",
        repeats=sizes.repeats,
    )
    with topology(ParallelConfig()) as topo:
        rows = measure_experts(bench, topo)
    figures = [Figure(f"{row.name}, {row.routing}: time over the dense MLP's", row.ratio) for row in rows]
    return Found(figures, missing(), {"milliseconds": {f"{row.name}, {row.routing}": row.median_ms for row in rows}})


def train(sizes: Sizes) -> Found:
    """Steps of the whole trainer against a plain loop around transformers' model, in bf16."""
    shape = sizes.train
    bench = TrainBench(
        hidden_size=shape.hidden,
        num_layers=shape.layers,
        ffn_hidden_size=max(64, shape.hidden * 3 // 2),
        moe_experts=shape.experts,
        vocab_size=shape.vocab,
        seq_length=shape.seq,
        micro_batch_size=shape.samples,
        dtype="bf16",
        repeats=sizes.repeats,
        compile=True,
    )
    found = Found()
    for row in measure_train(bench):
        goal = THROUGHPUT_GOAL if row.name in (OUR_STEP, COMPILED_STEP) else None
        found.figures.append(Figure(f"{row.name}: over transformers' faster way", row.ratio, at_least=goal))
        found.data[row.name] = row.tokens_per_second
    return found
