"""`altup-moe bench sequence`: what strided layers save, as ratios of medians over interleaved training steps.

One process holds the plain model and one of every method and takes a step of each in turn, so that a change of the
machine's speed meets all of them. The paper (arXiv 2301.13310, Table 3) has 74.9 against 52.4 examples a second for a
T5 base model whose encoder strides by 4, that is 1.43 times.
"""

from __future__ import annotations

import json
import platform
import statistics
from dataclasses import dataclass, replace

import torch

from altup_moe.bench.options import SequenceBench
from altup_moe.bench.stepper import Stepper, interleaved, milliseconds_text, run_config
from altup_moe.config import RunConfig, SequenceConfig
from altup_moe.config.architectures import ARCHITECTURES
from altup_moe.config.checks import check_config
from altup_moe.model.flops import attention_flops
from altup_moe.parallel.topology import topology

PLAIN = "plain"
TIMES_FASTER_GOAL = 1.35
"""Goal: how many times faster `altup` of stride 4 is, at least."""


@dataclass(frozen=True)
class SequenceResult:
    """One model: a step's seconds (median, extremes), samples per second, how many times the plain model's they are,
    and the forward pass's operations in attention scores and weighted values, of one sample."""

    method: str
    median_seconds: float
    min_seconds: float
    max_seconds: float
    samples_per_second: float
    times_faster: float
    attention_flops: float


def models(bench: SequenceBench) -> dict[str, RunConfig]:
    """The plain model and one of each method, equal but for their strides."""
    plain = run_config(bench, bench.width)
    if ARCHITECTURES[bench.arch].encoder_decoder:
        shape = replace(plain.model, arch=bench.arch, decoder_seq_length=bench.decoder_seq_length)
        plain = replace(plain, model=replace(shape, share_embeddings_and_output_weights=False))
    configs = {PLAIN: plain}
    for method in bench.methods:
        configs[method] = replace(plain, sequence=SequenceConfig(bench.stride, bench.layers, method))
    return configs


def measure_sequence(bench: SequenceBench) -> list[SequenceResult]:
    """Time all models, the plain one first."""
    configs = models(bench)
    for config in configs.values():
        check_config(config, 1)
    torch.set_num_threads(bench.threads)
    with topology(configs[PLAIN].parallel) as topo:
        seconds = interleaved({name: Stepper(config, topo) for name, config in configs.items()}, bench.repeats)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    return [
        SequenceResult(
            name,
            medians[name],
            min(taken),
            max(taken),
            bench.micro_batch_size / medians[name],
            medians[PLAIN] / medians[name],
            attention_flops(configs[name]),
        )
        for name, taken in seconds.items()
    ]


def bench_sequence(bench: SequenceBench) -> int:
    """Measure and print a table, or one JSON object."""
    results = measure_sequence(bench)
    if bench.json:
        machine = {"machine": platform.machine(), "torch": torch.__version__, "threads": bench.threads}
        print(json.dumps({"bench": vars(bench), **machine, "methods": [vars(r) for r in results]}))
        return 0
    print(
        f"{_shape(bench)}, micro-batch {bench.micro_batch_size}, "
        f"{bench.moe_experts or 'no'} experts, fp32, {bench.threads} thread(s), "
        f"median of {bench.repeats} interleaved steps"
    )
    print("  method            step ms (min .. max)            samples/s   times faster   attention GFLOP/sample")
    for r in results:
        taken = milliseconds_text(r.median_seconds, r.min_seconds, r.max_seconds)
        goal = f"  goal >= {TIMES_FASTER_GOAL}" if (r.method, bench.stride) == ("altup", 4) else ""
        print(
            f"  {r.method:<18}{taken:<32}{r.samples_per_second:9.2f}{r.times_faster:15.2f}"
            f"{r.attention_flops / 1e9:18.3f} forward{goal}"
        )
    return 0


def _shape(bench: SequenceBench) -> str:
    """Describe the models in one line."""
    strides = f"{bench.num_layers} layers of which {bench.layers} stride by {bench.stride}"
    if not ARCHITECTURES[bench.arch].encoder_decoder:
        return f"hidden {bench.hidden_size}, {strides}, K = {bench.width}, sequence {bench.seq_length}"
    return (
        f"t5, hidden {bench.hidden_size}, encoder of {strides}, decoder of {bench.num_layers}, K = {bench.width}, "
        f"{bench.seq_length} tokens read, {bench.decoder_seq_length} written"
    )
