"""A plan as text and as a JSON object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from altup_moe.config import RunConfig
from altup_moe.config.checks import num_microbatches
from altup_moe.config.units import GIB
from altup_moe.model.flops import flops_per_token, model_products
from altup_moe.plan.cluster import Cluster
from altup_moe.plan.costs import FRAGMENTATION
from altup_moe.plan.layer_time import Window
from altup_moe.plan.memory import Memory
from altup_moe.plan.parameters import count_parameters
from altup_moe.plan.published import PublishedRun
from altup_moe.plan.routes import local_tokens, nodes_met
from altup_moe.plan.search import Found, pareto_layouts
from altup_moe.plan.step import StepPlan
from altup_moe.plan.whole_run import whole_run


def plan_dict(config: RunConfig, cluster: Cluster, plan: StepPlan) -> dict[str, Any]:
    """All figures of a plan except the slots of the schedule, as a JSON object."""
    stages = []
    for stage in plan.stages:
        record = asdict(stage)
        stages.append({**record, "memory": {**record["memory"], "total": stage.memory.total}})
    return {
        "cluster": asdict(cluster),
        "gpus": plan.gpus,
        "parameters": asdict(count_parameters(config)),
        "products_per_token": asdict(model_products(config)),
        "flops_per_token": flops_per_token(config),
        "micro_batches": num_microbatches(config, plan.gpus),
        "step_seconds": plan.seconds,
        "run": asdict(whole_run(config, plan)),
        "tokens_per_second": plan.tokens_per_second,
        "mfu": plan.mfu,
        "bubble": plan.bubble,
        "exposed_seconds": plan.exposed(),
        "windows": {
            "dense": plan.dense_window and asdict(plan.dense_window),
            "experts": plan.moe_window and asdict(plan.moe_window),
        },
        "nodes_met_by_a_token": _nodes_met(config, cluster),
        "peak_memory_bytes": plan.peak_memory,
        "fits": plan.fits,
        "fits_fragmented": plan.fits_fragmented,
        "stages": stages,
    }


def _nodes_met(config: RunConfig, cluster: Cluster) -> float | None:
    """Mean number of nodes that hold a token's experts; None if one node holds all, or nodes hold unequal numbers."""
    p = config.parallel
    nodes = p.expert * p.expert_tensor // cluster.gpus_per_node
    experts = config.moe.num_experts
    return nodes_met(experts, config.moe.top_k, nodes) if nodes > 1 and experts % nodes == 0 else None


def plan_lines(config: RunConfig, cluster: Cluster, plan: StepPlan) -> Iterator[str]:
    """The plan as lines of text and tables."""
    counts, products = count_parameters(config), model_products(config)
    yield f"{layout(config, plan.gpus)} on {cluster.name}, {plan.gpus // cluster.gpus_per_node or 1} node(s)"
    yield f"parameters  {counts.total:,} ({counts.active:,} active for a token, {counts.experts:,} in experts)"
    shares = [f"{name} {value / products.total:.1%}" for name, value in asdict(products).items() if value]
    yield f"operations  {flops_per_token(config) / 1e9:,.2f} GFLOP a token, forward and backward: {', '.join(shares)}"
    yield (
        f"step        {plan.seconds:.3f} s, {plan.tokens_per_second:,.0f} tokens/s, MFU {plan.mfu:.1%}; "
        f"{num_microbatches(config, plan.gpus)} micro-batches, bubble {plan.bubble:.1%}"
    )
    run = whole_run(config, plan)
    hours = f"{run.hours:,.1f} hours, {run.gpu_hours:,.0f} GPU hours"
    yield f"run         {run.steps:,} steps, {run.tokens:,} tokens: {hours}, without validations and saves"
    exposed = [f"{kind} {seconds * 1e3:,.1f}" for kind, seconds in plan.exposed().items() if seconds]
    yield f"exposed     {', '.join(exposed) or 'no communication'} (ms of the slowest stage)"
    for name, window in (("a dense", plan.dense_window), ("an MoE", plan.moe_window)):
        if window is not None and (window.needs or window.waits):
            yield f"mixing      {_window(name, window)}"
    met = _nodes_met(config, cluster)
    if met is not None:
        saved = f"sent to a node once, {met / config.moe.top_k:.0%} of the rows would travel"
        yield f"dispatch    a token's {config.moe.top_k} experts lie on {met:.2f} nodes in the mean; {saved}"
    limit = cluster.memory_gib * cluster.usable_memory
    fits = "fits" if plan.fits else "DOES NOT FIT"
    if plan.fits and not plan.fits_fragmented:
        fits += f", unless the allocator loses {FRAGMENTATION:.0%} to fragmentation"
    yield f"memory      {plan.peak_memory / GIB:.1f} GiB of {limit:.1f} usable: {fits}"
    yield from _stage_table(plan)
    yield from _link_table(plan)


def _window(name: str, window: Window) -> str:
    waits = f"{1e6 * window.waits:,.0f} us wait for outputs" if window.waits else ""
    if not window.needs:
        return f"{name} layer's: {waits}"
    free = window.idle >= window.needs
    word = "is hidden" if free else f"is not hidden: {1e6 * (window.needs - window.idle):,.0f} us of it wait"
    figures = f"needs {1e6 * window.needs:,.0f} us, the window has {1e6 * window.idle:,.0f}"
    figures += f", {window.idle / window.needs:.1f} times" if free else ""
    return f"{name} layer's pass {word} ({figures}){waits and f'; {waits}'}"


def _stage_table(plan: StepPlan) -> Iterator[str]:
    parts = list(Memory.__dataclass_fields__)
    yield f"{'stage':>6}{'parameters':>17}" + "".join(f"{part:>13}" for part in parts) + f"{'total':>9}  GiB"
    for number, stage in enumerate(plan.stages):
        sizes = "".join(f"{getattr(stage.memory, part) / GIB:>13.2f}" for part in parts)
        yield f"{number:>6}{stage.parameters:>17,}{sizes}{stage.memory.total / GIB:>9.2f}"


def _link_table(plan: StepPlan) -> Iterator[str]:
    yield f"{'sent':>6}{'kind':>11}{'calls':>9}{'in the node':>14}{'between':>11}  MB a step, by the stage's first rank"
    for number, stage in enumerate(plan.stages):
        for link in stage.links:
            figures = f"{link.calls:>9,}{link.inside / 1e6:>14,.1f}{link.between / 1e6:>11,.1f}"
            yield f"{number:>6}{link.kind:>11}{figures}"


def layout(config: RunConfig, gpus: int) -> str:
    """A layout in one line."""
    p, t = config.parallel, config.train
    sizes = {
        "TP": p.tensor,
        "PP": p.pipeline,
        "VP": p.virtual_pipeline,
        "CP": p.context,
        "EP": p.expert,
        "ETP": p.expert_tensor,
        "DP": gpus // (p.tensor * p.pipeline * p.context),
    }
    words = [f"{name} {size}" for name, size in sizes.items() if size > 1]
    return f"{', '.join(words) or 'one rank'}, micro-batch {t.micro_batch_size}, recompute {t.recompute}"


def found_rows(found: Sequence[Found]) -> Iterator[str]:
    """A table of layouts.

    A star marks those that no layout with the same number of GPUs or fewer beats, an exclamation mark those that fit
    only in the memory that fragmentation takes.
    """
    if not found:
        yield "no layout fits"
        return
    best = pareto_layouts(found)
    run = whole_run(found[0].config, found[0].plan)
    yield f"{run.steps:,} steps, {run.tokens:,} tokens; hours without validations and saves"
    columns = f"{'GPUs':>7}{'step s':>10}{'tokens/s':>14}{'hours':>10}{'GPU hours':>12}"
    yield f"{columns}{'MFU':>8}{'bubble':>8}{'GiB':>8}    layout"
    for one in found:
        plan, run = one.plan, whole_run(one.config, one.plan)
        figures = f"{plan.gpus:>7,}{plan.seconds:>10.3f}{plan.tokens_per_second:>14,.0f}{run.hours:>10,.1f}"
        figures += f"{run.gpu_hours:>12,.0f}{plan.mfu:>8.1%}{plan.bubble:>8.1%}{plan.peak_memory / GIB:>8.1f}"
        marks = ("*" if one in best else " ") + (" " if plan.fits_fragmented else "!")
        yield f"{figures} {marks} {layout(one.config, plan.gpus)}"
    if not all(one.plan.fits_fragmented for one in found):
        yield f"! does not fit if the allocator loses {FRAGMENTATION:.0%} of the memory to fragmentation"


def found_dict(one: Found) -> dict[str, Any]:
    """A layout of a search as a JSON object."""
    plan = one.plan
    return {
        "gpus": plan.gpus,
        "step_seconds": plan.seconds,
        "tokens_per_second": plan.tokens_per_second,
        "run": asdict(whole_run(one.config, plan)),
        "mfu": plan.mfu,
        "bubble": plan.bubble,
        "peak_memory_bytes": plan.peak_memory,
        "fits_fragmented": plan.fits_fragmented,
        "parallel": asdict(one.config.parallel),
        "micro_batch_size": one.config.train.micro_batch_size,
        "recompute": one.config.train.recompute,
        "tokens_of_a_rank": local_tokens(one.config),
    }


def published_rows(points: Sequence[tuple[PublishedRun, StepPlan]]) -> Iterator[str]:
    """A table of published and planned figures."""
    yield f"{'run':<15}{'GPUs':>7}{'published':>11}{'model':>8}{'deviation':>11}   source"
    for point, plan in points:
        deviation = plan.mfu / point.mfu - 1
        yield f"{point.name:<15}{point.gpus:>7,}{point.mfu:>11.1%}{plan.mfu:>8.1%}{deviation:>+11.1%}   {point.source}"
        if point.note:
            yield f"{'':<55}{point.note}"
