"""A cluster in a box: n nodes as network namespaces of this machine, joined by links of a chosen rate.

In a shell: `altup-moe launch netlab --nodes 2 -- altup-moe train ...`. In Python: `run_on_netlab`, `unavailable`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from altup_moe.launch import cluster
from altup_moe.launch.common import not_found
from altup_moe.launch.netplan import NetlabError, NetlabPlan, bits_per_second, check_sizes, make_plan

EXAMPLES = (
    "altup-moe launch netlab --nodes 2 --rate 200mbit -- altup-moe train overlap_2rank --profile",
    "altup-moe launch netlab --nodes 2 --rate 200mbit --measure",
)

__all__ = ["EXAMPLES", "NetlabError", "NetlabOptions", "launch", "run_on_netlab", "unavailable"]

NODE_GRACE = 30.0
"""Seconds that nodes have to end after a signal, enough for a training step and a checkpoint."""

# All of this happens in an unnamed namespace, which disappears with the shell.
_PROBE = """ip link add netlab0 type bridge && ip link add netlab1 type veth peer name netlab2 &&
tc qdisc add dev netlab1 root tbf rate 1mbit burst 16kb latency 50ms"""


@dataclass(frozen=True)
class NetlabOptions:
    """Run COMMAND under torchrun on nodes that are network namespaces of this machine (needs root)."""

    nodes: int = 2
    """Number of nodes."""
    rate: str | None = None
    """What each node can send, as in 200mbit; None is no limit."""
    ranks_per_node: int = 1
    """Ranks on each node."""
    log_dir: Path | None = None
    """Directory for the output of nodes 1 and up (node<i>.log); None prints it to stderr, with a prefix."""
    grace: float = NODE_GRACE
    """Seconds that nodes have to end after a signal."""
    dry_run: bool = False
    """Print the commands and create nothing."""
    measure: bool = False
    """Measure the links instead of running a command."""
    clean: bool = False
    """Only remove what netlabs that were killed have left."""


def unavailable() -> str | None:
    """Why no cluster can be created here, or None. Leaves nothing behind."""
    if not sys.platform.startswith("linux"):
        return "netlab needs Linux's network namespaces"
    if os.geteuid() != 0:
        return 'netlab needs root, as in sudo env PATH="$PATH" altup-moe launch netlab'
    missing = [tool for tool in ("ip", "tc", "setpriv", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"netlab needs {', '.join(missing)} in PATH (packages iproute2 and util-linux)"
    if importlib.util.find_spec("torch") is None:
        return f"netlab needs torch, which {sys.executable} lacks; activate the environment of altup-moe"
    probe = subprocess.run(["unshare", "--net", "sh", "-c", _PROBE], capture_output=True, text=True)
    if probe.returncode:
        return f"netlab needs namespaces, bridges, veth and tc tbf, which fail here: {' '.join(probe.stderr.split())}"
    return None


def run_on_netlab(
    nodes: int,
    rate: str | None,
    command: Sequence[str],
    ranks_per_node: int = 1,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    grace: float = NODE_GRACE,
    log_dir: Path | None = None,
) -> int:
    """Run a command on every rank of a new cluster. The cluster is always removed at the end.

    Node 0 writes to this process's stdout and stderr. The lines of other nodes go to stderr with the prefix `[node i]`,
    or to `log_dir/node<i>.log`. Leftovers of netlabs that were killed are removed first.

    Args:
        nodes: number of nodes, 1 to 64.
        rate: send rate of each node in the notation of tc (`200mbit`); None sets no limit.
        command: command of every rank; its program is searched in PATH and beside this interpreter.
        ranks_per_node: ranks that torchrun starts on each node.
        env: environment of the ranks beyond this process's. OMP_NUM_THREADS is 1 and TORCH_CPP_LOG_LEVEL is ERROR
            unless set there.
        timeout: seconds after which the nodes are stopped and 124 is returned.
        grace: seconds that nodes have to end after a signal or the timeout.
        log_dir: directory for the output of all nodes except node 0; created if missing.

    Returns:
        0, the exit code of the node that failed first (that of its first failing rank), 124 after the timeout, or
        128 + n where signal n ended a node.

    Raises:
        NetlabError: an argument does not fit, something is missing (`unavailable`), or the network could not be made.
    """
    plan = _checked_plan(nodes, rate, command, ranks_per_node, env)
    if reason := unavailable():
        raise NetlabError(reason)
    if log_dir is not None:
        try:
            log_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NetlabError(f"--log-dir {str(log_dir)!r}: {error.strerror}; a directory would fit") from None
    cluster.remove_dead()
    return cluster.run_plan(plan, grace, timeout, log_dir)


def _checked_plan(
    nodes: int, rate: str | None, command: Sequence[str], ranks_per_node: int, env: Mapping[str, str] | None
) -> NetlabPlan:
    check_sizes(nodes, ranks_per_node, rate)
    if not command:
        raise NetlabError(
            "command: none given; put it behind --, as in altup-moe launch netlab --nodes 2 -- altup-moe train CONFIG"
        )
    # An environment's commands lie beside its interpreter, also when it was not activated.
    program = shutil.which(command[0]) or shutil.which(command[0], path=str(Path(sys.executable).parent))
    if program is None:
        raise NetlabError(not_found(command))
    return make_plan(cluster.new_prefix(), nodes, rate, [program, *command[1:]], ranks_per_node, env)


def launch(options: NetlabOptions, command: Sequence[str]) -> int:
    """Run a command on a new cluster, or measure its links, or clean up. Returns the exit code.

    Raises:
        NetlabError: an option or the command does not fit, or no cluster can be created here.
    """
    if options.clean:
        if reason := unavailable():
            raise NetlabError(reason)
        print(f"removed {len(cluster.remove_dead())} namespaces")
        return 0
    if options.measure:
        check_sizes(options.nodes, options.ranks_per_node, options.rate)
        command = _measure_command(options, command)
    if options.dry_run:
        plan = _checked_plan(options.nodes, options.rate, command, options.ranks_per_node, None)
        print("\n".join(plan.lines()))
        return 0
    return run_on_netlab(
        options.nodes,
        options.rate,
        command,
        ranks_per_node=options.ranks_per_node,
        grace=options.grace,
        log_dir=options.log_dir,
    )


def _measure_command(options: NetlabOptions, command: Sequence[str]) -> list[str]:
    if command:
        raise NetlabError(f"--measure with command {command[0]!r}: one of the two would fit")
    if (options.nodes, options.ranks_per_node) != (2, 1):
        raise NetlabError(f"--measure with {options.nodes} nodes of {options.ranks_per_node} ranks: 2 of 1 would fit")
    # Two seconds in each direction; 256 MiB where nothing limits it.
    chunks = 256 if options.rate is None else max(1, round(bits_per_second(options.rate) / 8 * 2 / 2**20))
    script = Path(__file__).with_name("measure.py")
    return [sys.executable, "-P", str(script), options.rate or "none", str(chunks)]
