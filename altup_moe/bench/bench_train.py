"""`altup-moe bench train`: a training step of ours against a plain PyTorch loop around transformers' Mixtral.

Same shape, tokens, type, threads, AdamW and clipping, no balancing loss on either side (Mixtral's loop has none unless
asked), one rank, K = 1. Interleaved steps, medians. Ours is the whole step of the trainer, with its records.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from altup_moe.bench.options import TrainBench
from altup_moe.bench.stepper import Stepper, wait_for_gpu
from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, RunConfig, TrainConfig
from altup_moe.config.checks import check_config
from altup_moe.config.packages import PACKAGES
from altup_moe.moe.backends import BACKENDS
from altup_moe.parallel.topology import topology

THROUGHPUT_GOAL = 1.3
"""Goal: tokens per second of the torch backend over those of transformers' faster loop, at least."""
OUR_STEP = "ours, torch backend"
COMPILED_STEP = "ours, torch backend, compiled"


@dataclass(frozen=True)
class TrainRow:
    """Result of one contender: median and fastest step, tokens per second, ratio to transformers' faster loop."""

    name: str
    median_ms: float
    min_ms: float
    tokens_per_second: float
    ratio: float


def train_config(bench: TrainBench, backend: Any = "torch") -> RunConfig:
    """The model that both sides train."""
    heads = max(1, bench.hidden_size // 64)
    model = ModelConfig(
        num_layers=bench.num_layers,
        hidden_size=bench.hidden_size,
        num_attention_heads=heads,
        num_query_groups=heads,
        seq_length=bench.seq_length,
        vocab_size=bench.vocab_size,
    )
    moe = MoEConfig(
        num_experts=bench.moe_experts, ffn_hidden_size=bench.ffn_hidden_size, aux_loss_coeff=0.0, backend=backend
    )
    train = TrainConfig(
        micro_batch_size=bench.micro_batch_size, global_batch_size=bench.micro_batch_size, precision=bench.dtype
    )
    return RunConfig(model, AltUpConfig(width=1), moe, train=train)


def mixtral_step(config: RunConfig, how: str, device: torch.device) -> Callable[[], float]:
    """Seconds of one step of a plain loop around MixtralForCausalLM. ``how``: its experts' implementation."""
    from transformers import MixtralConfig, MixtralForCausalLM

    m, o, t = config.model, config.optim, config.train
    mixtral = MixtralConfig(
        vocab_size=m.vocab_size,
        hidden_size=m.hidden_size,
        intermediate_size=config.moe.ffn_hidden_size,
        num_hidden_layers=m.num_layers,
        num_attention_heads=m.num_attention_heads,
        num_key_value_heads=m.num_query_groups,
        num_local_experts=config.moe.num_experts,
        num_experts_per_tok=config.moe.top_k,
        tie_word_embeddings=m.share_embeddings_and_output_weights,
        max_position_embeddings=m.seq_length,
        use_cache=False,
    )
    dtype = torch.bfloat16 if t.precision == "bf16" else torch.float32
    model = MixtralForCausalLM._from_config(mixtral, experts_implementation=how, dtype=dtype).to(device).train()
    betas = (o.adam_beta1, o.adam_beta2)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=o.learning_rate, betas=betas, eps=o.adam_eps, weight_decay=o.weight_decay
    )
    shape = (t.micro_batch_size, m.seq_length)
    tokens = torch.randint(m.vocab_size, shape, generator=torch.Generator().manual_seed(0)).to(device)

    def step() -> float:
        started = time.perf_counter()
        optimizer.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), o.clip_grad)
        optimizer.step()
        wait_for_gpu()
        return time.perf_counter() - started

    return step


def measure_train(bench: TrainBench) -> list[TrainRow]:
    """Time every installed backend, the torch one compiled if asked for, and transformers' two, in turns."""
    torch.set_num_threads(bench.threads)
    config = train_config(bench)
    with topology(config.parallel) as topo:
        steps: dict[str, Callable[[], float]] = {}
        for name in BACKENDS:
            package = PACKAGES.get(name)
            if package is None or package.found():
                run = replace(config, moe=replace(train_config(bench, name).moe))
                steps[f"ours, {name} backend"] = Stepper(run, topo).step
        if bench.compile:
            steps[COMPILED_STEP] = Stepper(replace(config, train=replace(config.train, compile=True)), topo).step
        steps |= {f"transformers, {how}": mixtral_step(config, how, topo.device) for how in ("grouped_mm", "eager")}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for repeat in range(bench.repeats + 2):
            for name, step in steps.items():
                taken = step()
                if repeat >= 2:
                    seconds[name].append(taken)
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    base = min(median for name, median in medians.items() if name.startswith("transformers"))
    tokens = bench.micro_batch_size * bench.seq_length
    return [
        TrainRow(name, 1e3 * median, 1e3 * min(seconds[name]), tokens / median, base / median)
        for name, median in medians.items()
    ]


def bench_train(bench: TrainBench) -> int:
    """Measure and print a table and the goal, or one JSON object."""
    check_config(train_config(bench), 1)
    load = os.getloadavg()[0]
    rows = measure_train(bench)
    if bench.json:
        machine = {"machine": platform.machine(), "torch": torch.__version__, "load": load}
        print(json.dumps({"bench": vars(bench), **machine, "rows": [vars(row) for row in rows]}))
    else:
        print("\n".join(train_table(bench, load, rows)))
    return 0


def train_table(bench: TrainBench, load: float, rows: list[TrainRow]) -> list[str]:
    """Lines of a table, and whether the goal is met."""
    lines = [
        f"hidden {bench.hidden_size}, {bench.num_layers} layers, {bench.moe_experts} experts top-2 of inner width "
        f"{bench.ffn_hidden_size}, vocabulary {bench.vocab_size}, sequence {bench.seq_length}, micro-batch "
        f"{bench.micro_batch_size}, {bench.dtype}, {bench.threads} thread(s), median of {bench.repeats} interleaved "
        f"steps, load before {load:.1f}",
        f"{'':<30}{'step ms':>10}{'min':>9}{'tokens/s':>11}   x transformers",
    ]
    for r in rows:
        lines.append(f"{r.name:<30}{r.median_ms:10.1f}{r.min_ms:9.1f}{r.tokens_per_second:11.0f}{r.ratio:12.2f}")
    for r in rows:
        if r.name in (OUR_STEP, COMPILED_STEP):
            met = "met    " if r.ratio >= THROUGHPUT_GOAL else "not met"
            lines.append(f"{met} {r.ratio:.2f}  {r.name}: >= {THROUGHPUT_GOAL} x transformers' faster way")
    return lines
