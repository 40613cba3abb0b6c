"""Sections of a dry run that follow from the configuration alone: layout, parameters, memory and step time."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from altup_moe.commands.dry_run_section import Section, spelled_duration
from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.checks import data_parallel_size, num_microbatches
from altup_moe.config.units import GIB
from altup_moe.parallel.counts import count_parameters
from altup_moe.parallel.parameter_names import global_shapes, is_buffer
from altup_moe.parallel.rank_coordinates import chunk_layers
from altup_moe.plan.cluster import Cluster
from altup_moe.plan.groups import Ranks, World
from altup_moe.plan.memory import Memory
from altup_moe.plan.report import layout
from altup_moe.plan.step import StepPlan, plan_step

GROUPS_SHOWN = 8
"""Groups of one kind that are listed; of more, the first and their number."""
PARTS: dict[str, Callable[[str], bool]] = {
    "experts": lambda name: ".experts." in name,
    "shared experts": lambda name: ".shared_expert." in name,
    "routers": lambda name: ".router." in name,
    "altup": lambda name: ".altup." in name or "altup_" in name,
    "sequence": lambda name: ".sequence." in name,
    "norms": lambda name: "norm" in name,
    "attention": lambda name: "_attn." in name or "relative_attention_bias" in name,
    "mlp": lambda name: ".mlp." in name,
    "output layer": lambda name: name.startswith("lm_head"),
    "embedding": lambda name: True,
}
"""Part of a model -> whether a global parameter name is in it; the first that says so has it."""


def layout_section(config: RunConfig, ranks: int, words: Sequence[str]) -> Section:
    """Ranks, what each dimension of parallelism is, which ranks form groups, and what one step consists of.

    ``words``: a command line's configuration file and overrides.
    """
    t, m, p = config.train, config.model, config.parallel
    count, data = num_microbatches(config, ranks), data_parallel_size(config, ranks)
    groups = rank_groups(config, ranks)
    start = shlex.join(["altup-moe", "train", *words])
    if ranks > 1:
        start = f"altup-moe launch torchrun --ranks-per-node {ranks} -- {start}"
    lines = [
        f"{ranks} rank(s): {layout(config, ranks)}",
        f"{t.global_batch_size} samples of {m.tokens_per_sample:,} tokens a step: {count} micro-batch(es) of "
        f"{t.micro_batch_size} on each of {data} data rank(s)",
        *(f"{name} groups: {_spelled(found)}" for name, found in groups.items()),
    ]
    stages = [[list(chunk.layers) for chunk in chunk_layers(config, stage)] for stage in range(p.pipeline)]
    if p.pipeline > 1:
        spelled = [", ".join(f"{c[0]}-{c[-1]}" if len(c) > 1 else f"{c[0]}" for c in chunks if c) for chunks in stages]
        lines.append(f"layers of the pipeline's stages: {'; '.join(spelled)}")
    lines.append(f"start: {start}")
    figures = {
        "ranks": ranks,
        "parallel": asdict(p),
        "groups": groups,
        "stages": stages,
        "micro_batches": count,
        "data_ranks": data,
        "tokens_per_step": t.global_batch_size * m.tokens_per_sample,
        "start": start,
    }
    return Section("layout", lines, figures)


def rank_groups(config: RunConfig, ranks: int) -> dict[str, list[Ranks]]:
    """The process groups of more than one rank, by kind."""
    world, p = World(config.parallel, ranks), config.parallel
    kinds: dict[str, Callable[[Any], Ranks]] = {"tensor": world.tensor, "context": world.context}
    kinds |= {"data": world.data_alone, "pipeline": lambda c: _pipeline(p.pipeline, ranks, c.rank)}
    if config.moe.num_experts:
        kinds |= {"expert": world.expert, "expert-tensor": world.expert_tensor, "expert-data": world.expert_data}
    found = {name: sorted({group(c) for c in world.all_coordinates}) for name, group in kinds.items()}
    return {name: groups for name, groups in found.items() if len(groups[0]) > 1}


def _pipeline(stages: int, ranks: int, rank: int) -> Ranks:
    """Ranks with the same place in their stages."""
    stage = ranks // stages
    return tuple(range(rank % stage, ranks, stage))


def _spelled(groups: list[Ranks]) -> str:
    shown = [", ".join(map(str, group)) for group in groups[: GROUPS_SHOWN if len(groups) <= GROUPS_SHOWN else 1]]
    more = "" if len(groups) <= GROUPS_SHOWN else f" and {len(groups) - 1} more of {len(groups[0])} ranks"
    return " | ".join(shown) + more


def model_section(config: RunConfig) -> Section:
    """What model it is; all parameters, those active for a token, and by part of the model."""
    counts, parts = count_parameters(config), parameter_parts(config)
    shares = ", ".join(f"{name} {size:,}" for name, size in parts.items())
    total = f"{counts.total:,} parameters, {counts.active:,} of them active for a token: {shares}"
    return Section("model", [spelled_model(config), total], {**asdict(counts), "parts": parts})


def spelled_model(config: RunConfig) -> str:
    """Architecture, stream and experts in one line, defaults included."""
    m, a, moe, sequence = config.model, config.altup, config.moe, config.sequence
    layers = f"{m.num_layers} encoder and {m.decoder_layers} decoder" if m.encoder_decoder else f"{m.num_layers}"
    stream = f"{a.variant} stream of altup.width {a.width}" if a.width > 1 else "a plain stream (altup.width 1)"
    words = [f"{m.arch}, {layers} layers of width {m.hidden_size}", stream]
    if sequence.stride > 1:
        words.append(f"{sequence.method} over the sequence, stride {sequence.stride}")
    often = "every layer" if moe.layer_freq == 1 else f"one of {moe.layer_freq} layers"
    words.append(f"{moe.num_experts} experts, top {moe.top_k}, in {often}" if moe.num_experts else "no experts")
    return ", ".join(words)


def parameter_parts(config: RunConfig) -> dict[str, int]:
    """Numbers of parameters of the whole model by part, largest first; a tied output layer counts as embedding."""
    sizes = dict.fromkeys(PARTS, 0)
    for name, shape in global_shapes(config).items():
        if not is_buffer(name):
            sizes[next(part for part, has in PARTS.items() if has(name))] += math.prod(shape)
    return {part: size for part, size in sorted(sizes.items(), key=lambda item: -item[1]) if size}


def plan_section(config: RunConfig, ranks: int, cluster: Cluster, assumed: bool) -> Section:
    """The planner's memory and step time; or in one line why it has none."""
    try:
        plan = plan_step(config, cluster, ranks)
    except ConfigError as error:
        return Section("memory, time", [f"not planned: {error}"], {"planned": None, "reason": str(error)}, "plan")
    steps = min(config.train.steps, config.train.stop_after or config.train.steps)
    fullest = max(plan.stages, key=lambda stage: stage.memory.total).memory
    parts = ", ".join(f"{name} {getattr(fullest, name) / GIB:.2f}" for name in Memory.__dataclass_fields__)
    limit = cluster.memory_gib * cluster.usable_memory
    fits = "fits" if plan.fits else "DOES NOT FIT"
    lines = [
        f"{plan.peak_memory / GIB:.2f} GiB on the fullest rank: {parts}; {cluster.name} has {limit:.1f} usable: {fits}",
        f"{_time(plan)}; {steps:,} steps in {spelled_duration(plan.seconds * steps)}, without validations and saves",
    ]
    if assumed:
        measure = "altup-moe plan measure FILE, then --cluster FILE, estimates this machine"
        lines.append(f"each rank is assumed to be a GPU of {cluster.name}; {measure}")
    figures = {
        "planned": {
            "cluster": cluster.name,
            "cluster_assumed": assumed,
            "peak_memory_bytes": plan.peak_memory,
            "memory_bytes": asdict(fullest),
            "fits": plan.fits,
            "step_seconds": plan.seconds,
            "tokens_per_second": plan.tokens_per_second,
            "mfu": plan.mfu,
            "run_seconds": plan.seconds * steps,
        },
        "reason": None,
    }
    return Section("memory, time", lines, figures, "plan")


def _time(plan: StepPlan) -> str:
    bubble = f", bubble {plan.bubble:.0%}" if plan.bubble > 0.005 else ""
    return f"{plan.seconds * 1e3:,.3g} ms a step, {plan.tokens_per_second:,.0f} tokens/s{bubble}"
