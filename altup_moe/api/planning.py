"""What a run would cost on a cluster, computed without starting it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from altup_moe.config import RunConfig
from altup_moe.config.load import load_config

if TYPE_CHECKING:
    from altup_moe.plan.step import StepPlan


def plan(
    config: RunConfig | str | Path,
    cluster: str = "h100x8",
    *,
    nodes: int = 1,
    gpus: int | None = None,
    imbalance: float = 1.0,
    straggler: float = 1.0,
) -> StepPlan:
    """Time, memory and communication of one training step. Needs no torch, no data and no cluster.

    Args:
        config: a configuration, or what `load_config` takes: name of a shipped one, or path of a YAML file.
        cluster: name of a shipped cluster, or the path of a cluster's YAML file.
        nodes: nodes of the cluster. gpus: GPUs; None is all of the nodes.
        imbalance: rows of the fullest expert rank over the mean. straggler: compute time of the slowest GPU over the
            mean.

    Returns:
        A record: seconds of a step, tokens_per_second, mfu and bubble (shares), peak_memory (bytes of the fullest
        rank), fits, stages, exposed() (seconds of communication that nothing hides, by kind).

    Raises:
        ConfigError: a number below 1; the layout does not fit the number of GPUs, or the planner has no arithmetic for
            the model; an unknown cluster.

    Examples:
        >>> from altup_moe.api import load_config
        >>> plan(load_config(), "h100x8", gpus=1).fits
        True
    """
    from altup_moe.plan.cluster import gpus_of, load_cluster
    from altup_moe.plan.layer_time import Factors
    from altup_moe.plan.step import plan_step

    found = load_cluster(cluster)
    run = config if isinstance(config, RunConfig) else load_config(config)
    return plan_step(run, found, gpus_of(found, nodes, gpus), Factors(imbalance, straggler))
