"""Shared by the launchers: one-line errors, the search for programs, the environment of ranks."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

from altup_moe.config.errors import UserError
from altup_moe.doctor.network import interface_towards, local_address


class LaunchError(UserError):
    """A request of the user that cannot be fulfilled; `str(error)` is one readable line."""


def need_command(command: Sequence[str], example: str) -> None:
    """Raise LaunchError if there is no command to start."""
    if not command:
        raise LaunchError(f"command: none given; put it behind --, as in {example}")


def find_program(name: str) -> str | None:
    """Path of a program in PATH or beside this interpreter (an environment that is not activated); None if missing."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def found_command(command: Sequence[str]) -> list[str]:
    """The command with the path of its program.

    Raises:
        LaunchError: there is no such program.
    """
    program = find_program(command[0])
    if program is None:
        raise LaunchError(not_found(command))
    return [program, *command[1:]]


def not_found(command: Sequence[str]) -> str:
    """What to say of a command whose program does not exist; perhaps it lacks `altup-moe`."""
    name = command[0].replace("-", "_")
    ours = name.isidentifier() and importlib.util.find_spec(f"altup_moe.commands.{name}") is not None
    fits = f"type altup-moe {shlex.join(command)}" if ours else "a program in PATH or its path would fit"
    return f"command {command[0]!r}: not found; {fits}"


def need_torch() -> None:
    """Raise LaunchError if this interpreter has no torch."""
    if importlib.util.find_spec("torch") is None:
        raise LaunchError(
            f"{sys.executable} has no torch (and so no torchrun); activate the environment of altup-moe, "
            "set PYTHON to its interpreter, or install the package there (pip install . in a checkout)"
        )


def whole_number_within(name: str, value: str | int, low: int, high: int) -> int:
    """A whole number from `low` to `high`.

    Raises:
        LaunchError: `value` is no such number. `name` is the user's name for it.
    """
    text = str(value)
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        raise LaunchError(f"{name} {text!r}: a whole number, {low} to {high}, would fit")
    return int(text)


def set_defaults(env: MutableMapping[str, str], meeting: str, nodes: int, ranks_per_node: int) -> list[str]:
    """Complete the environment of the ranks of one node. Variables that the user has set stay.

    OMP_NUM_THREADS: the cores that this process may use, divided by its ranks (torchrun alone would set 1).
    GLOO_SOCKET_IFNAME: the loopback on one node, so that no name of the machine has to resolve; with more nodes the
    interface that leads to `meeting`. NCCL finds its interface by itself.

    Args:
        meeting: host where the ranks meet.
    Returns:
        Warnings, each a line.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    env.setdefault("OMP_NUM_THREADS", str(max(1, cores // max(1, ranks_per_node))))
    if "GLOO_SOCKET_IFNAME" in env or not sys.platform.startswith("linux"):
        return []
    if nodes == 1:
        env["GLOO_SOCKET_IFNAME"] = "lo"
        return []
    address = local_address(meeting)
    interface = interface_towards(meeting)
    if address is None or interface is None:
        return [f"no interface leads to {meeting}; set GLOO_SOCKET_IFNAME if the nodes do not find each other"]
    if interface == "lo" and meeting not in ("localhost", "127.0.0.1"):
        # Debian's /etc/hosts gives a machine's own name a loopback address: other nodes could not answer.
        return [f"{meeting} is a loopback address here; set GLOO_SOCKET_IFNAME to the interface of the other nodes"]
    env["GLOO_SOCKET_IFNAME"] = interface
    return []
