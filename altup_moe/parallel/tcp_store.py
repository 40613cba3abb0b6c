"""The store of a rendezvous on one interface: torch's own listens on all of them.

`TCPStore` takes a socket that listens already (torch 2.13), which is bound here.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from datetime import timedelta
from typing import Any


def open_store(host: str, port: int, *, hosts: bool, seconds: float, alone: bool = False) -> Any:
    """A `torch.distributed.TCPStore`; with `hosts` also its server, which listens at the address of `host` only.

    Where that address cannot be bound (a forwarded one), or is the loopback although other machines are to come
    (`alone` False), the server listens on all interfaces. A second store of this process at the same port, also torch's
    own, uses the same server while the first store lives.

    Args:
        port: 0 takes a free one, which is `store.port`.
        seconds: how long operations wait.
        alone: all that come are on this machine.
    Raises:
        OSError: the port is in use.
    """
    from torch.distributed import TCPStore

    listening = bound_socket(host, port, alone) if hosts else None
    return TCPStore(
        host_name=host,
        port=listening.getsockname()[1] if listening else port,
        is_master=hosts,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
        multi_tenant=True,
        master_listen_fd=listening.detach() if listening else None,
    )


def bound_socket(host: str, port: int, alone: bool = False) -> socket.socket:
    """A socket that listens at the address of `host`, or on all interfaces where that does not serve.

    Raises:
        OSError: the name does not resolve, or the port is in use.
    """
    family, address = resolve(host)
    if not _is_loopback(address) or alone or _is_literal(host) or host == "localhost":
        try:
            return _listen(family, address, port)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise
    return _listen(socket.AF_INET, "", port)


def resolve(host: str) -> tuple[socket.AddressFamily, str]:
    """Family and address of a name, IPv4 first. Raises OSError (`socket.gaierror`) if it does not resolve."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    family, *_, place = min(found, key=lambda one: one[0] != socket.AF_INET)
    return family, str(place[0])


def is_local(host: str) -> bool:
    """Whether a name that resolves is one of this machine's addresses, or its own name."""
    family, address = resolve(host)
    try:
        with socket.socket(family) as probe:
            probe.bind((address, 0))
        return True
    except OSError:
        return host in (socket.gethostname(), socket.getfqdn())


def _listen(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    own = socket.socket(family)
    try:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind((address, port))
        own.listen(1024)
    except OSError:
        own.close()
        raise
    return own


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
