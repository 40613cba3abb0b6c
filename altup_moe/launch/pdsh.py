"""Hosts that pdsh and ssh reach: whether they can run a rank, and signals to ranks there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence

from altup_moe.launch.common import LaunchError
from altup_moe.launch.hosts import Host

SECONDS = 60.0
"""For one command on all hosts; pdsh gives up a host that does not answer after 10 s."""
NO_DIRECTORY, NO_FILE = 31, 32
_FAILED = re.compile(r"^pdsh@[^:]*: (?P<host>[^:]+): ssh exited with exit code (?P<code>\d+)", re.MULTILINE)


def run_on(hosts: Sequence[Host], command: str) -> subprocess.CompletedProcess[str]:
    """A shell command on all hosts; its exit code is the largest of theirs.

    Raises:
        subprocess.TimeoutExpired: it took more than `SECONDS`.
    """
    names = ",".join(host.name for host in hosts)
    env = {**os.environ, "PDSH_RCMD_TYPE": "ssh"}
    return subprocess.run(
        ["pdsh", "-S", "-w", names, command],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS,
        start_new_session=True,  # Ctrl-C is passed on by this process alone
    )


def check_hosts(hosts: Sequence[Host], directory: str, script: str) -> None:
    """Check that each host can be reached, and has the directory, the interpreter and the script.

    Raises:
        LaunchError: one that cannot or has not, named, with what ssh said.
    """
    files = f"[ -x {sys.executable} ] && [ -r {script} ] || exit {NO_FILE}"
    try:
        done = run_on(hosts, f"cd {directory} 2>/dev/null || exit {NO_DIRECTORY}; {files}")
    except subprocess.TimeoutExpired:
        raise LaunchError(f"hosts: pdsh did not end within {SECONDS:.0f} s; ssh to each without a password?") from None
    if done.returncode == 0:
        return
    failed = _FAILED.search(done.stderr)
    if failed is None:
        raise LaunchError(f"hosts: pdsh: {' '.join(done.stderr.split())[:300] or f'exit code {done.returncode}'}")
    host, code = failed["host"], int(failed["code"])
    if code == NO_DIRECTORY:
        raise LaunchError(f"host {host}: no directory {directory}; one that all hosts see would fit")
    if code == NO_FILE:
        raise LaunchError(f"host {host}: no {sys.executable} or {script}; an installation at the same path would fit")
    said = re.search(rf"^{re.escape(host)}: (.+)$", done.stderr, re.MULTILINE)
    why = said[1].strip() if said else f"ssh exited with exit code {code}"
    raise LaunchError(f"host {host}: cannot be reached ({why}); try ssh {host} true, or start each host with --no-ssh")


def tell_ranks(hosts: Sequence[Host], script: str, token: str, number: int) -> bool:
    """Send a signal to the ranks of one launch on all hosts. Returns whether each host had some."""
    try:
        return run_on(hosts, f"{sys.executable} {script} --tell {number} {token}").returncode == 0
    except subprocess.TimeoutExpired:
        return False
