"""Hosts from a file or a flag. Command lines of ssh and pdsh contain their names, so only plain names are accepted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from altup_moe.launch.common import LaunchError

# Letters, digits, dots, dashes and underscores, starting with a letter or digit: nothing a shell, ssh (flags) or pdsh
# (lists, ranges) would read as anything else.
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_LINE = re.compile(r"(\S+)[ \t]+slots=([0-9]{1,4})")
_IPV6 = re.compile(r"\[[0-9A-Fa-f:.]{2,45}\]")
MAX_SLOTS = 1024
MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class Host:
    """A machine and the number of its ranks."""

    name: str
    slots: int

    def line(self) -> str:
        """The line of a hostfile."""
        return f"{self.name} slots={self.slots}"


def check_host(what: str, name: str) -> str:
    """A host's name or IPv4 address, as given.

    Raises:
        LaunchError: any other text. `what` names its source.
    """
    if not _HOST.fullmatch(name):
        raise LaunchError(f"{what} {name[:80]!r}: a host name of letters, digits, '.', '-' and '_' would fit")
    return name


def split_endpoint(what: str, text: str, default_port: int | None = None) -> tuple[str, int]:
    """Host and port of `HOST:PORT` (an IPv6 address in brackets, which are taken off).

    Raises:
        LaunchError: any other text, or no port and no default.
    """
    host, colon, port = text, "", ""
    if not _IPV6.fullmatch(text):
        host, colon, port = text.rpartition(":") if ":" in text else (text, "", "")
    if not colon and default_port is None:
        raise LaunchError(f"{what} {text[:80]!r}: HOST:PORT would fit, as in node0:29500")
    number = port if colon else str(default_port)
    if not (number.isascii() and number.isdigit() and 1 <= int(number) <= 65535):
        raise LaunchError(f"{what} {text[:80]!r}: the port must be a number, 1 to 65535, as in node0:29500")
    if _IPV6.fullmatch(host):
        return host[1:-1], int(number)
    return check_host(what, host), int(number)


def parse_hosts(text: str, name: str) -> list[Host]:
    """The hosts of a hostfile with lines `host slots=N`. Empty lines and text after `#` are ignored.

    Args:
        text: the file's content.
        name: name of the file in messages.

    Raises:
        LaunchError: any other line, a host named twice, no slots, or no host. The message starts with NAME:LINE.
    """
    hosts: dict[str, Host] = {}
    for number, raw in enumerate(text.split("\n"), start=1):
        line = raw.partition("#")[0].strip(" \t\r")
        if not line:
            continue
        match = _LINE.fullmatch(line)
        if not match or not _HOST.fullmatch(match[1]):
            raise LaunchError(f"{name}:{number}: {line[:80]!r}: HOST slots=N would fit, as in node0 slots=8")
        if not 1 <= int(match[2]) <= MAX_SLOTS:
            raise LaunchError(f"{name}:{number}: slots={match[2]}: 1 to {MAX_SLOTS} would fit")
        if match[1] in hosts:
            raise LaunchError(f"{name}:{number}: {match[1]} is named twice; one line a host would fit")
        hosts[match[1]] = Host(match[1], int(match[2]))
    if not hosts:
        raise LaunchError(f"{name}: names no host; lines like node0 slots=8 would fit")
    return list(hosts.values())


def read_hosts(path: Path) -> list[Host]:
    """`parse_hosts` of a file.

    Raises:
        LaunchError: as `parse_hosts`; also if the file is unreadable, not UTF-8, or larger than 1 MiB.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise LaunchError(f"--hostfile {path}: larger than 1 MiB; a list of hosts would fit")
        return parse_hosts(data.decode(), str(path))
    except OSError as error:
        raise LaunchError(f"--hostfile {path}: {error.strerror}; a readable file would fit") from None
    except UnicodeDecodeError as error:
        raise LaunchError(f"--hostfile {path}: no UTF-8 at byte {error.start}; plain text would fit") from None
