"""Two nodes of their own, n0 and n1, in namespaces of this machine: processes, network, host names and /etc/hosts.

Nothing of the machine is touched, no port is taken, and the kernel ends every process in them when this one ends.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from altup_moe.launch.node import child_processes
from altup_moe.parallel import parent_death
from tests.processes import wait_until

HOSTS = "127.0.0.1 localhost\n10.77.0.254 ctl\n10.77.0.10 n0\n10.77.0.11 n1\n"
NODES = ("n0", "n1")
_PROGRAMS = ("unshare", "nsenter", "ip", "tc")


def unavailable() -> str | None:
    """Why there can be no such nodes here; None if there can."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "two nodes in namespaces need Linux and root"
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"not found: {', '.join(missing)}"
    probe = "ip link add probe0 type veth peer name probe1 && mount -t tmpfs none /run"
    words = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", probe]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else None


class TwoNodes:
    """The nodes while open.

    Args:
        directory: for their files; its path must be short, since sockets are in it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._unshare: subprocess.Popen[bytes] | None = None
        self._enter: list[str] = []

    def __enter__(self) -> TwoNodes:
        (self.directory / "hosts").write_text(HOSTS)
        spaces = ["--mount", "--net", "--uts", "--pid", "--fork", "--mount-proc", "--kill-child"]
        script = Path(__file__).with_suffix(".sh")
        unshare = [str(shutil.which("unshare")), *spaces, "/bin/bash", str(script), str(self.directory)]
        with (self.directory / "nodes.log").open("wb") as log:
            self._unshare = subprocess.Popen(
                [sys.executable, parent_death.__file__, str(os.getpid()), *unshare],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(lambda: (self.directory / "ready").exists() or self._ended(), "two nodes")
        if self._ended():
            raise RuntimeError((self.directory / "nodes.log").read_text())
        (first,) = child_processes(self._unshare.pid)
        self._enter = ["nsenter", f"--target={first}", "--mount", "--net", "--uts", "--pid", "--"]
        return self

    def __exit__(self, *_: object) -> None:
        assert self._unshare is not None
        self._unshare.kill()  # and with it, by --kill-child, the first process, and with that one all others
        self._unshare.wait()

    def _ended(self) -> bool:
        return self._unshare is not None and self._unshare.poll() is not None

    def words(self, argv: Sequence[str], node: str | None = None) -> list[str]:
        """The command line that runs a command on a node, or beside them, in the directory of the nodes' files."""
        own = [] if node is None else ["nsenter", f"--net=/run/netns/{node}", f"--uts=/run/uts/{node}", "--"]
        return [*self._enter, *own, "env", f"--chdir={self.directory}", *argv]

    def run(self, *argv: str, node: str | None = None, check: bool = True, **options: Any) -> str:
        """A command to its end; what it prints, on both streams."""
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 60, **options}
        done = subprocess.run(self.words(argv, node), stdin=subprocess.DEVNULL, **both)
        assert not check or done.returncode == 0, f"{argv}: exit code {done.returncode}: {done.stdout}"
        return done.stdout

    def start(self, *argv: str, node: str | None = None, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command, which ends with the nodes at the latest; its output comes on its stdout."""
        return subprocess.Popen(
            self.words(argv, node), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def shape(self, rate: str | None) -> None:
        """Limit what each node sends, as in 200mbit; None removes the limit."""
        for node in NODES:
            self.run("tc", "qdisc", "del", "dev", "eth0", "root", node=node, check=False)
            if rate is not None:
                limit = ["tbf", "rate", rate, "burst", "64kb", "latency", "50ms"]
                self.run("tc", "qdisc", "add", "dev", "eth0", "root", *limit, node=node)

    def processes(self, node: str) -> list[int]:
        """Processes on a node, numbered as this machine numbers them."""
        inode = int(self.run("stat", "-Lc", "%i", "/proc/self/ns/net", node=node))
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (entry / "ns" / "net").stat().st_ino == inode:
                    found.append(int(entry.name))
        return found

    def kill(self, node: str) -> None:
        """Kill every process on a node, as a power cut does."""
        while pids := self.processes(node):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


@contextmanager
def nodes_for_a_while(prefix: str) -> Iterator[TwoNodes]:
    """Two nodes with a directory of their own, which is removed. (pytest's paths are too long for sockets.)"""
    directory = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        with TwoNodes(directory) as nodes:
            yield nodes
    finally:
        shutil.rmtree(directory)
