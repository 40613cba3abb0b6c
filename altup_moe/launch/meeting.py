"""Nodes meet before their ranks start: who does not come is named, in one line and in a given time.

Each node says in the store of the rendezvous that it has come, and waits for the others. torchrun then meets in the
same store: it takes the server that this process has opened (`parallel.tcp_store`).
"""

from __future__ import annotations

import errno
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from altup_moe.launch.common import LaunchError
from altup_moe.parallel.tcp_store import is_local, open_store, resolve

POLL_SECONDS = 0.1
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Endpoint:
    """Where nodes meet.

    ``node``: this node's number; None if nodes number themselves. ``seconds``: how long the nodes wait for each other.
    ``flag``: what the user has given it by.
    """

    host: str
    port: int
    nodes: int
    node: int | None
    seconds: int
    flag: str = "--rdzv"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def store_of_one_node(seconds: int) -> Any:
    """The store of a run on this machine, on a free port of the loopback."""
    return open_store(LOOPBACK, 0, hosts=True, seconds=seconds, alone=True)


def meet(endpoint: Endpoint, name: str) -> tuple[Any, bool]:
    """Wait until all nodes have come. Returns the store, and whether this process hosts it.

    Args:
        name: prefix of messages.
    Raises:
        LaunchError: the host does not resolve, nobody answers there, the port is in use, or nodes are missing.
    """
    give_up = time.monotonic() + endpoint.seconds
    _wait_for_name(endpoint, name, give_up)
    store, hosts = _open(endpoint, give_up)
    try:
        _wait_for_nodes(endpoint, store, give_up)
    except (RuntimeError, OSError) as error:
        if isinstance(error, LaunchError):
            raise
        raise LaunchError(
            f"{endpoint.flag} {endpoint}: the node that hosts the meeting has ended; it says why"
        ) from None
    return store, hosts


def _wait_for_name(endpoint: Endpoint, name: str, give_up: float) -> None:
    """Names of machines that start together may come late, so an unknown one is looked up again."""
    warned = False
    while True:
        try:
            resolve(endpoint.host)
            return
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() >= give_up:
            raise LaunchError(
                f"{endpoint.flag} {endpoint}: {endpoint.host} does not resolve ({reason}), also not within "
                f"{endpoint.seconds} s; a name or address of the first node would fit"
            )
        if not warned:
            warned = True
            print(
                f"{name}: warning: {endpoint.host} does not resolve ({reason}); trying for {endpoint.seconds} s",
                file=sys.stderr,
                flush=True,
            )
        time.sleep(min(1.0, max(POLL_SECONDS, give_up - time.monotonic())))


def _open(endpoint: Endpoint, give_up: float) -> tuple[Any, bool]:
    """The store: hosted here by node 0, or where nodes have no numbers by the first one at the endpoint's address."""
    if endpoint.node == 0 or (endpoint.node is None and is_local(endpoint.host)):
        try:
            return open_store(endpoint.host, endpoint.port, hosts=True, seconds=endpoint.seconds), True
        except OSError as error:
            if error.errno != errno.EADDRINUSE or endpoint.node == 0:
                raise LaunchError(
                    f"{endpoint.flag} {endpoint}: cannot listen there ({error.strerror}); a free port of the first "
                    "node would fit"
                ) from None
    while not _answers(endpoint):
        if time.monotonic() >= give_up:
            raise LaunchError(
                f"{endpoint.flag} {endpoint}: nobody answers within {endpoint.seconds} s; the first node has not "
                "come, or a firewall is between"
            )
        time.sleep(POLL_SECONDS)
    with suppress(RuntimeError):
        return open_store(endpoint.host, endpoint.port, hosts=False, seconds=endpoint.seconds), False
    raise LaunchError(f"{endpoint.flag} {endpoint}: something else than a node of this run answers there")


def _answers(endpoint: Endpoint) -> bool:
    """Whether somebody listens. (torch's own waiting prints a page where nobody does.)"""
    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout=5):
            return True
    except OSError:
        return False


def _wait_for_nodes(endpoint: Endpoint, store: Any, give_up: float) -> None:
    number = store.add("altup-moe/nodes", 1) - 1 if endpoint.node is None else endpoint.node
    store.set(_key(number), socket.gethostname())
    while missing := [node for node in range(endpoint.nodes) if not store.check([_key(node)])]:
        if time.monotonic() >= give_up:
            came = endpoint.nodes - len(missing)
            raise LaunchError(
                f"{endpoint.flag} {endpoint}: only {came} of {endpoint.nodes} nodes came within {endpoint.seconds} s: "
                + _who(endpoint, store, missing)
            )
        time.sleep(POLL_SECONDS)


def _who(endpoint: Endpoint, store: Any, missing: list[int]) -> str:
    if endpoint.node is None:
        came = [store.get(_key(node)).decode() for node in range(endpoint.nodes) if node not in missing]
        return f"{', '.join(came)}; start the launcher on the others"
    shown = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    return f"node {shown} is missing" if len(missing) == 1 else f"nodes {shown} are missing"


def _key(node: int) -> str:
    return f"altup-moe/node/{node}"
