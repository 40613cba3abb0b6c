"""`altup-moe launch torchrun`: one node of a run, started by hand, by ssh or by srun."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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

NAME = "altup-moe launch torchrun"
EXAMPLES = (
    f"{NAME} --ranks-per-node 2 -- altup-moe train quickstart",
    f"{NAME} --nodes 2 --node-rank 0 --rdzv node0:29500 -- altup-moe train ...   (on node0)",
    f"{NAME} --nodes 2 --node-rank 1 --rdzv node0:29500 -- altup-moe train ...   (on the other)",
)


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
    """Restarts after a failure, never after exit code 2, 75 or a signal (MAX_RESTARTS; else 0)."""
    dry_run: bool = False
    """Print torchrun's arguments and start nothing."""


def _choose(flag: str, given: object, env: Mapping[str, str], *names: str) -> tuple[str, str | None]:
    """(name, value) of a flag, or else of the first environment variable that is set."""
    if given is not None:
        return flag, str(given)
    return next(((name, env[name]) for name in names if env.get(name)), (flag, None))


def agent_arguments(options: TorchrunOptions, env: Mapping[str, str], gpus: int) -> tuple[list[str], str, int, int]:
    """(torchrun's arguments, host where ranks meet, number of nodes, ranks on this node).

    Raises:
        LaunchError: a number or endpoint that does not fit.
    """
    name, value = _choose("--nodes", options.nodes, env, "NNODES")
    nodes = whole_number_within(name, value or 1, 1, 100_000)
    name, value = _choose("--ranks-per-node", options.ranks_per_node, env, "RANKS_PER_NODE")
    ranks = whole_number_within(name, value or max(1, gpus), 1, 1024)
    name, value = _choose("--max-restarts", options.max_restarts, env, "MAX_RESTARTS")
    restarts = whole_number_within(name, value or 0, 0, 1000)
    size = ["--nnodes", str(nodes), "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    if nodes == 1:
        # --standalone chooses a free port, so that two runs on one machine do not conflict.
        return ["--standalone", *size], "localhost", nodes, ranks
    by_variables = f"{env['MASTER_ADDR']}:{env.get('MASTER_PORT') or MASTER_PORT}" if env.get("MASTER_ADDR") else None
    name, value = ("--rdzv", options.rdzv) if options.rdzv is not None else ("MASTER_ADDR:MASTER_PORT", by_variables)
    if value is None:
        raise LaunchError(
            f"--rdzv: needed for {nodes} nodes; the first node's HOST:PORT would fit, as in node0:{MASTER_PORT}"
        )
    host, port = split_endpoint(name, value)
    under_srun = "SLURM_STEP_ID" in env
    name, value = _choose("--node-rank", options.node_rank, env, "NODE_RANK", *["SLURM_NODEID"] * under_srun)
    node = None if value is None else whole_number_within(name, value, 0, nodes - 1)
    if node is not None and not restarts:
        return [*size, "--node-rank", str(node), "--master-addr", host, "--master-port", str(port)], host, nodes, ranks
    # With static node ranks a restart would wait at the address of the first start (torch 2.13), so restarts use c10d.
    # There a node rank only says which node hosts the rendezvous.
    endpoint = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", f"altup-moe-{port}"]
    host_or_guest = [] if node is None else ["--rdzv-conf", f"is_host={int(node == 0)}"]
    return [*size, *meeting, *host_or_guest], host, nodes, ranks


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
    agent_arguments(options, os.environ, gpus=1)
    need_torch()
    from altup_moe.launch import node

    node.hear_signals()
    gpus = 0 if options.ranks_per_node is not None or os.environ.get("RANKS_PER_NODE") else _gpus()
    arguments, host, nodes, ranks = agent_arguments(options, os.environ, gpus)
    for warning in set_defaults(os.environ, host, nodes, ranks):
        print(f"{NAME}: warning: {warning}", file=sys.stderr)
    arguments = [*arguments, "--no-python", *found]
    if options.dry_run:
        print(shlex.join(["torchrun", *arguments]))
        return 0
    return node.main(arguments, NAME)
