"""`altup-moe launch torchrun`: one node of a run, started by hand, by ssh or by srun."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from altup_moe.config.imports import without_collections
from altup_moe.doctor.network import MASTER_PORT
from altup_moe.launch.common import (
    LaunchError,
    found_command,
    need_command,
    need_torch,
    set_defaults,
    whole_number_within,
)
from altup_moe.launch.hosts import split_endpoint
from altup_moe.launch.meeting import LOOPBACK, Endpoint, meet, store_of_one_node

NAME = "altup-moe launch torchrun"
EXAMPLES = (
    f"{NAME} --ranks-per-node 2 -- altup-moe train quickstart",
    f"{NAME} --nodes 2 --node-rank 0 --rdzv node0:29500 -- altup-moe train ...   (on node0)",
    f"{NAME} --nodes 2 --node-rank 1 --rdzv node0:29500 -- altup-moe train ...   (on the other)",
)

RDZV_SECONDS = 300
CPP_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"


@dataclass(frozen=True)
class TorchrunOptions:
    """Run COMMAND on every rank of a node under torchrun."""

    nodes: int | None = None
    """Number of nodes (variable NNODES; else 1)."""
    node_rank: int | None = None
    """This node's number (NODE_RANK, under srun SLURM_NODEID)."""
    rdzv: str | None = None
    """HOST:PORT where nodes meet, a host of theirs (MASTER_ADDR:MASTER_PORT)."""
    ranks_per_node: int | None = None
    """Ranks here (RANKS_PER_NODE; else the GPUs, or 1)."""
    max_restarts: int | None = None
    """Restarts after a failure (MAX_RESTARTS; else 0). None after exit code 2, 75, 76 or a signal, and no more once the
    same step has failed twice with the same error."""
    rdzv_timeout: int | None = None
    """Seconds that nodes wait for each other (RDZV_TIMEOUT; else 300)."""
    dry_run: bool = False
    """Print torchrun's arguments and start nothing."""


def _choose(flag: str, given: object, env: Mapping[str, str], *names: str) -> tuple[str, str | None]:
    """(name, value) of a flag, or else of the first environment variable that is set."""
    if given is not None:
        return flag, str(given)
    return next(((name, env[name]) for name in names if env.get(name)), (flag, None))


@dataclass(frozen=True)
class NodePlan:
    """What one node starts.

    ``arguments``: torchrun's, without those of the rendezvous. ``endpoint``: where the nodes meet; None for one node.
    """

    arguments: tuple[str, ...]
    ranks: int
    restarts: int
    seconds: int
    endpoint: Endpoint | None

    @property
    def host(self) -> str:
        """Where ranks meet."""
        return self.endpoint.host if self.endpoint else LOOPBACK

    def agent_arguments(self, port: int = 0, hosts: bool | None = None) -> list[str]:
        """torchrun's arguments.

        Args:
            port: of the store of one node; 0 lets torchrun choose a free one.
            hosts: whether this node hosts the meeting; None of one that is not known to.
        """
        if self.endpoint is None:
            c10d = ["--rdzv-backend", "c10d", "--rdzv-id", "altup-moe", "--local-addr", LOOPBACK]
            return [*self.arguments, *c10d, "--rdzv-endpoint", f"{LOOPBACK}:{port}", "--rdzv-conf", "is_host=1"]
        at = self.endpoint
        if at.node is not None and not self.restarts:
            static = ["--node-rank", str(at.node), "--master-addr", at.host, "--master-port", str(at.port)]
            return [*self.arguments, *static, "--rdzv-conf", f"timeout={self.seconds}"]
        # With static node ranks a restart would wait at the address of the first start (torch 2.13), so restarts use
        # c10d. There a node rank only says which node hosts the rendezvous.
        hosts = at.node == 0 if hosts is None and at.node is not None else hosts
        conf = f"join_timeout={self.seconds},read_timeout={self.seconds}"
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", str(at), "--rdzv-id", f"altup-moe-{at.port}"]
        is_host = "" if hosts is None else f"is_host={int(hosts)},"
        return [*self.arguments, *meeting, "--rdzv-conf", is_host + conf]


def node_plan(options: TorchrunOptions, env: Mapping[str, str], gpus: int) -> NodePlan:
    """What this node starts, by flags and variables.

    Raises:
        LaunchError: a number or endpoint that does not fit.
    """
    name, value = _choose("--nodes", options.nodes, env, "NNODES")
    nodes = whole_number_within(name, value or 1, 1, 100_000)
    name, value = _choose("--ranks-per-node", options.ranks_per_node, env, "RANKS_PER_NODE")
    ranks = whole_number_within(name, value or max(1, gpus), 1, 1024)
    name, value = _choose("--max-restarts", options.max_restarts, env, "MAX_RESTARTS")
    restarts = whole_number_within(name, value or 0, 0, 1000)
    name, value = _choose("--rdzv-timeout", options.rdzv_timeout, env, "RDZV_TIMEOUT")
    seconds = whole_number_within(name, value or RDZV_SECONDS, 1, 1_000_000)
    size = ("--nnodes", str(nodes), "--nproc-per-node", str(ranks), "--max-restarts", str(restarts))
    if nodes == 1:
        return NodePlan(size, ranks, restarts, seconds, None)
    by_variables = f"{env['MASTER_ADDR']}:{env.get('MASTER_PORT') or MASTER_PORT}" if env.get("MASTER_ADDR") else None
    name, value = ("--rdzv", options.rdzv) if options.rdzv is not None else ("MASTER_ADDR:MASTER_PORT", by_variables)
    if value is None:
        raise LaunchError(
            f"--rdzv: needed for {nodes} nodes; the first node's HOST:PORT would fit, as in node0:{MASTER_PORT}"
        )
    host, port = split_endpoint(name, value)
    flag, under_srun = name, "SLURM_STEP_ID" in env
    name, value = _choose("--node-rank", options.node_rank, env, "NODE_RANK", *["SLURM_NODEID"] * under_srun)
    node = None if value is None else whole_number_within(name, value, 0, nodes - 1)
    return NodePlan(size, ranks, restarts, seconds, Endpoint(host, port, nodes, node, seconds, flag))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def launch(options: TorchrunOptions, command: Sequence[str]) -> int:
    """Start the ranks of this node and wait for them. Returns the exit code: the ranks' own.

    Raises:
        LaunchError: an option or the command does not fit.
    """
    need_command(command, EXAMPLES[0])
    found = found_command(command)
    # Check the flags before torch is imported, which takes seconds.
    node_plan(options, os.environ, gpus=1)
    need_torch()
    from altup_moe.launch import node

    node.hear_signals()
    with _without_pages():
        gpus = 0 if options.ranks_per_node is not None or os.environ.get("RANKS_PER_NODE") else _gpus()
    plan = node_plan(options, os.environ, gpus)
    at = plan.endpoint
    if options.dry_run:
        _prepare_environment(plan)
        print(shlex.join(["torchrun", *plan.agent_arguments(), "--no-python", *found]))
        return 0
    with _without_pages(), without_collections():
        import torch.distributed  # noqa: F401
    # The store stays open, with its server, as long as torchrun runs.
    store, hosts = meet(at, NAME) if at else (store_of_one_node(plan.seconds), True)
    _prepare_environment(plan)
    return node.main([*plan.agent_arguments(store.port, hosts), "--no-python", *found], NAME)


@contextmanager
def _without_pages() -> Iterator[None]:
    """Inside, torch is imported such that its C++ code only logs errors in this process: not a page of stack frames
    for each node that has ended. Ranks log as the user wants.
    """
    if CPP_LOG_LEVEL in os.environ:
        yield
        return
    os.environ[CPP_LOG_LEVEL] = "ERROR"
    try:
        yield
    finally:
        del os.environ[CPP_LOG_LEVEL]


def _prepare_environment(plan: NodePlan) -> None:
    for warning in set_defaults(os.environ, plan.host, plan.endpoint.nodes if plan.endpoint else 1, plan.ranks):
        print(f"{NAME}: warning: {warning}", file=sys.stderr)
