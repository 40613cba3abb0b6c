"""Print how long the planner's searches take and whether they find the fastest: `python -m tests.plan_search_times`.

`--exhaustive` simulates every layout instead, without bounds and without what layouts have in common, and writes the
fastest to `tests/golden/plan_search.json`, with which the other searches are compared (two minutes of CPU).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.load import load_config
from altup_moe.config.shipped import CONFIGS
from altup_moe.plan.cache import Cache
from altup_moe.plan.cluster import Cluster, load_cluster
from altup_moe.plan.costs import memory_limit, stage_memory, step_costs
from altup_moe.plan.groups import World
from altup_moe.plan.layer_time import Factors
from altup_moe.plan.published import PUBLISHED_RUNS
from altup_moe.plan.report import layout
from altup_moe.plan.search import Progress, candidates, search
from altup_moe.plan.step import check_layout

GOLDEN = Path(__file__).parent / "golden" / "plan_search.json"
KEPT = 3
"""Layouts of each search in the golden file."""
CASES = [
    *((model, "h100x8", gpus) for gpus in (8, 64, 1024) for model in ("dense 7B", "Mixtral, K 2", "GPT-OSS")),
    ("Mixtral, K 2", "h200x8", 8),
]
"""(model, cluster, GPUs)."""


def model(name: str) -> RunConfig:
    """A run of a published size."""
    if name == "dense 7B":
        return load_config(CONFIGS / "llama_7b.yaml")
    if name == "GPT-OSS":
        return next(run.config for run in PUBLISHED_RUNS if run.name == "GPT-OSS 120B")
    return load_config(CONFIGS / "mixtral_8x7b.yaml", ["--altup.width=2"])


class NoCache(Cache):
    """Computes everything anew: for each layout, stage and layer."""

    def get(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """What `compute` returns."""
        return compute()


def exhaustive(config: RunConfig, cluster: Cluster, gpus: int, keep: int) -> list[tuple[float, RunConfig]]:
    """(seconds, layout) of the fastest layouts that fit, found by simulating all."""
    found, cache = [], NoCache()
    for candidate in candidates(config, cluster, gpus):
        try:
            check_layout(candidate, gpus)
        except ConfigError:
            continue
        world = World(candidate.parallel, gpus)
        if max(memory.total for memory in stage_memory(candidate, world, cache)) <= memory_limit(cluster):
            found.append((step_costs(candidate, cluster, world, Factors(), cache).seconds, candidate))
    # Of layouts with equal seconds the first.
    return sorted(found, key=lambda pair: pair[0])[:keep]


def as_rows(found: Sequence[tuple[float, RunConfig]], gpus: int) -> list[dict[str, Any]]:
    """Layouts as the golden file has them."""
    return [{"seconds": seconds, "layout": layout(config, gpus)} for seconds, config in found]


def timed(name: str, cluster: str, gpus: int) -> tuple[list[dict[str, Any]], Progress, float]:
    """(fastest layouts, last progress, CPU seconds) of a search."""
    seen: list[Progress] = []
    config, nodes, begin = model(name), load_cluster(cluster), time.process_time()
    found = search(config, nodes, gpus, report=seen.append)
    spent = time.process_time() - begin
    return as_rows([(f.plan.seconds, f.config) for f in found[:KEPT]], gpus), seen[-1], spent


def main(words: Sequence[str]) -> None:
    """Print a line for each search."""
    golden = {} if "--exhaustive" in words else json.loads(GOLDEN.read_text(encoding="utf-8"))
    for name, cluster, gpus in CASES:
        key, begin = f"{name}, {gpus} GPUs of {cluster}", time.process_time()
        if "--exhaustive" in words:
            golden[key] = as_rows(exhaustive(model(name), load_cluster(cluster), gpus, KEPT), gpus)
            print(f"{key}: {time.process_time() - begin:.1f} s CPU", flush=True)
            GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
            continue
        rows, last, spent = timed(name, cluster, gpus)
        best = f"{rows[0]['seconds']:.3f} s a step, {rows[0]['layout']}" if rows else "none fits"
        same = "as" if rows == golden[key] else "NOT as"
        counts = f"{last.simulated} of {last.layouts:,} layouts simulated"
        print(f"{spent:6.2f} s CPU  {counts:<36}{same} exhaustively  {key}: {best}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
