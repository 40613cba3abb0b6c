"""Interfaces, addresses and ports of this machine. Only the standard library: the launchers use this module too."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

MASTER_PORT = 29500
"""Port where the ranks of a run meet unless the user names another; also torch's default."""

SIOCGIFADDR = 0x8915
VARIABLES = (
    "GLOO_SOCKET_IFNAME",
    "NCCL_SOCKET_IFNAME",
    "NCCL_IB_DISABLE",
    "NCCL_IB_HCA",
    "NCCL_P2P_DISABLE",
    "NCCL_DEBUG",
    "MASTER_ADDR",
    "MASTER_PORT",
    "WORLD_SIZE",
    "RANK",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "HF_HUB_OFFLINE",
)
"""Environment variables that change how ranks find each other or compute."""


def interfaces() -> dict[str, str | None]:
    """Every interface with its IPv4 address (None without one)."""
    return {name: _address_of(name) for _, name in socket.if_nameindex()}


def _address_of(interface: str) -> str | None:
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            packed = struct.pack("256s", interface.encode()[:15])
            return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, packed)[20:24])
    except (OSError, ImportError):
        return None


def is_up(interface: str) -> bool:
    """Whether an interface is up (the loopback counts as up when the kernel says "unknown")."""
    try:
        return Path(f"/sys/class/net/{interface}/operstate").read_text().strip() in ("up", "unknown")
    except OSError:
        return False


def local_address(host: str) -> str | None:
    """IPv4 address that this machine would send from to a host; None if the name does not resolve or has no route."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # of a datagram socket: chooses a route and sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return None


def interface_of(address: str | None) -> str | None:
    """Interface with this address; None if no interface has it."""
    if address is None:
        return None
    if address.startswith("127."):
        return "lo" if "lo" in interfaces() else None
    return next((name for name, own in interfaces().items() if own == address), None)


def interface_towards(host: str) -> str | None:
    """Interface through which this machine reaches a host; None if it cannot."""
    return interface_of(local_address(host))


def gloo_choice(named: str | None) -> tuple[str | None, str]:
    """The interface that gloo chooses, and why.

    Args:
        named: GLOO_SOCKET_IFNAME, None if unset.
    Returns:
        The interface (None: gloo would fail, or use another) and an explanation.
    """
    if named:
        known = interfaces()
        missing = [name for name in named.split(",") if name not in known]
        if missing:
            return None, f"GLOO_SOCKET_IFNAME={named}, but there is no {missing[0]}; here are {', '.join(known)}"
        return named, "from GLOO_SOCKET_IFNAME"
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        return None, f"the machine's name {name} does not resolve; set GLOO_SOCKET_IFNAME"
    found = interface_of(address)
    return found, f"the machine's name {name} is {address}" + ("" if found else ", which no interface has")


def free_port() -> int:
    """A port of the loopback that was free just now.

    Raises:
        OSError: no port can be bound.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a port can be bound on every address of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
