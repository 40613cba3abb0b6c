"""The plan of a netlab as records. This module starts no process and creates nothing.

Every node has a network namespace with one interface, `veth0`. The other ends are ports of a bridge, which has its own
namespace. Only the names of namespaces are visible from outside, so clusters cannot conflict in their addresses.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from altup_moe.config.errors import UserError
from altup_moe.doctor.network import MASTER_PORT

INTERFACE = "veth0"
WORK_DIR = "/run"
"""A node's torchrun has a directory here, named like the namespace. Only root can write here."""
MAX_NODES = 64
NAMESPACE = re.compile(r"altup-(?P<pid>\d+)-(?P<start>\d+)-\d+-(\d+|switch)")

_RATE = re.compile(r"(\d+(?:\.\d+)?)(k|m|g)bit", re.IGNORECASE)
_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
# The bucket must hold the bytes of one timer interval (4 ms at 250 Hz), or the rate is not reached. A larger bucket
# would let more bytes pass at full speed after a pause. Below 16 KiB the kernel splits packets.
_BURST_SECONDS = 0.004
_MIN_BURST = 16 * 1024
_LATENCY = "100ms"  # packets wait this long in the queue before they are dropped: enough for TCP to fill the link


class NetlabError(UserError):
    """A request of the user that cannot be fulfilled; `str(error)` is one readable line."""


@dataclass(frozen=True)
class Node:
    """One node: its namespace, the address of `veth0`, its torchrun command, and additional environment variables."""

    namespace: str
    address: str
    argv: tuple[str, ...]
    env: Mapping[str, str]


@dataclass(frozen=True)
class NetlabPlan:
    """Commands that create the network, nodes to start, and namespaces to remove (their links disappear with them)."""

    create: tuple[tuple[str, ...], ...]
    nodes: tuple[Node, ...]
    namespaces: tuple[str, ...]

    def lines(self) -> list[str]:
        """The plan as shell commands."""
        create = [shlex.join(argv) for argv in self.create]
        nodes = [
            " ".join([*(f"{key}={shlex.quote(value)}" for key, value in node.env.items()), shlex.join(node.argv), "&"])
            for node in self.nodes
        ]
        return [*create, *nodes, "wait", *(f"ip netns del {name}" for name in self.namespaces)]


def bits_per_second(rate: str, flag: str = "rate") -> float:
    """Bits a second of a rate in the notation of tc; `flag` is its name in the error.

    Raises:
        NetlabError: not a number with kbit, mbit or gbit, or below 64kbit (where TCP hardly moves).
    """
    match = _RATE.fullmatch(rate)
    value = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
    if not 64e3 <= value <= 100e9:
        raise NetlabError(
            f"--{flag} {rate!r}: a number with kbit, mbit or gbit would fit, 64kbit to 100gbit, as in 200mbit"
        )
    return value


def burst_bytes(rate: str) -> int:
    """Bytes of the token bucket for a rate."""
    return max(_MIN_BURST, int(bits_per_second(rate) / 8 * _BURST_SECONDS))


def check_sizes(nodes: int, ranks_per_node: int, rate: str | None) -> None:
    """Raise NetlabError for numbers that do not fit."""
    if not 1 <= nodes <= MAX_NODES:
        raise NetlabError(f"--nodes {nodes}: 1 to {MAX_NODES} would fit")
    if not 1 <= ranks_per_node <= 64:
        raise NetlabError(f"--ranks-per-node {ranks_per_node}: 1 to 64 would fit")
    if rate is not None:
        bits_per_second(rate)


def make_plan(
    prefix: str,
    nodes: int,
    rate: str | None,
    command: Sequence[str],
    ranks_per_node: int = 1,
    env: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> NetlabPlan:
    """The plan of a cluster of `nodes`, whose sizes `check_sizes` has accepted.

    Args:
        prefix: prefix of the names of namespaces: `altup-<pid>-<start time>-<serial>`.
        rate: send rate of each node in the notation of tc; None sets no limit.
        command: command of every rank.
        env: environment variables of the nodes in addition to netlab's; those of the interface are added.
        python: interpreter whose torch provides torchrun.
    """
    switch = f"{prefix}-switch"
    create = [
        _words(f"ip netns add {switch}"),
        _words(f"ip -n {switch} link add bridge0 type bridge"),
        _words(f"ip -n {switch} link set bridge0 up"),
    ]
    planned = []
    for rank in range(nodes):
        name, address = f"{prefix}-{rank}", f"10.77.0.{rank + 1}"
        create += [
            _words(f"ip netns add {name}"),
            _words(f"ip -n {name} link set lo up"),
            _words(f"ip link add {INTERFACE} netns {name} type veth peer name port{rank} netns {switch}"),
            _words(f"ip -n {switch} link set port{rank} master bridge0 up"),
            _words(f"ip -n {name} addr add {address}/24 dev {INTERFACE}"),
            _words(f"ip -n {name} link set {INTERFACE} up"),
        ]
        if rate is not None:
            bucket = f"tbf rate {rate} burst {burst_bytes(rate)}b latency {_LATENCY}"
            create.append(_words(f"tc -n {name} qdisc add dev {INTERFACE} root {bucket}"))
        planned.append(Node(name, address, _node_argv(name, rank, nodes, ranks_per_node, command, python), _env(env)))
    return NetlabPlan(tuple(create), tuple(planned), (*(node.namespace for node in planned), switch))


def _words(command: str) -> tuple[str, ...]:
    return tuple(command.split())


def _node_argv(
    namespace: str, rank: int, nodes: int, ranks_per_node: int, command: Sequence[str], python: str
) -> tuple[str, ...]:
    # setpriv: a node gets SIGTERM when netlab itself is killed, so that its ranks do not keep training.
    # -P keeps this directory out of the launcher's module path.
    inside = _words(f"setpriv --pdeathsig TERM -- ip netns exec {namespace}")
    launcher = (python, "-P", str(Path(__file__).with_name("netlab_node.py")))
    size = f"--nnodes {nodes} --nproc-per-node {ranks_per_node} --node-rank {rank}"
    meeting = f"--master-addr 10.77.0.1 --master-port {MASTER_PORT} --local-addr 10.77.0.{rank + 1}"
    logs = f"--log-dir {WORK_DIR}/{namespace}"
    return (*inside, *launcher, *_words(f"{size} {meeting} {logs}"), "--no-python", *command)


def _env(extra: Mapping[str, str] | None) -> dict[str, str]:
    return {**(extra or {}), "GLOO_SOCKET_IFNAME": INTERFACE, "NCCL_SOCKET_IFNAME": INTERFACE}
