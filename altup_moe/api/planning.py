"""What a run would cost on a cluster, computed without starting it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from altup_moe.config import RunConfig
from altup_moe.config.ranges import COUNT

if TYPE_CHECKING:
    from altup_moe.plan.step import StepPlan


def plan(
    config: RunConfig,
    cluster: str = "h100x8",
    *,
    nodes: int = 1,
    gpus: int | None = None,
    imbalance: float = 1.0,
    straggler: float = 1.0,
) -> StepPlan:
    """Time, memory and communication of one training step. Needs no torch, no data and no cluster.

    Args:
        cluster: name of a shipped cluster, or the path of a cluster's YAML file.
        nodes: nodes of the cluster. gpus: GPUs; None is all of the nodes.
        imbalance: rows of the fullest expert rank over the mean. straggler: compute time of the slowest GPU over the
            mean.

    Returns:
        A record: seconds of a step, tokens_per_second, mfu and bubble (shares), peak_memory (bytes of the fullest
        rank), fits, stages, exposed() (seconds of communication that nothing hides, by kind).

    Raises:
        ConfigError: the layout does not fit the number of GPUs, or the planner has no arithmetic for the model; an
            unknown cluster.

    Examples:
        >>> from altup_moe.api import load_config
        >>> plan(load_config(), "h100x8", gpus=1).fits
        True
    """
    from altup_moe.plan.cluster import load_cluster
    from altup_moe.plan.layer_time import Factors
    from altup_moe.plan.step import plan_step

    COUNT.check("nodes", nodes)
    if gpus is not None:
        COUNT.check("gpus", gpus)
    found = load_cluster(cluster)
    return plan_step(config, found, gpus or nodes * found.gpus_per_node, Factors(imbalance, straggler))
