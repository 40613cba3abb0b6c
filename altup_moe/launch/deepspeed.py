"""`altup-moe launch deepspeed`: DeepSpeed's launcher with checked hosts, and the ranks' exit codes.

DeepSpeed accepts any text without spaces as a host and puts it on command lines. Here only plain names are accepted,
and DeepSpeed gets a copy of the checked hosts.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from altup_moe.doctor.network import MASTER_PORT
from altup_moe.launch.common import LaunchError, find_program, found_command, need_command, whole_number_within
from altup_moe.launch.deaths import in_order, report
from altup_moe.launch.hosts import Host, check_host, read_hosts
from altup_moe.launch.node import FORWARDED, child_processes, told_already, wait_and_hear
from altup_moe.launch.packed import pack
from altup_moe.launch.pdsh import check_hosts, tell_ranks
from altup_moe.launch.rank_parent import MARK
from altup_moe.launch.rank_watch import GRACE
from altup_moe.launch.restarts import ENDED_BY_SIGNAL, FINAL_CODES
from altup_moe.parallel.death_record import Death

NAME = "altup-moe launch deepspeed"
EXAMPLES = (
    f"{NAME} --ranks-per-node 2 -- altup-moe train quickstart",
    f"{NAME} --hostfile hosts -- altup-moe train ...   (once, by pdsh and ssh)",
    f"{NAME} --hostfile hosts --no-ssh --node-rank 0 -- altup-moe train ...   (by hand, on each host)",
)
# Text that a remote shell does not change in `export NAME="VALUE"; cd DIRECTORY; PYTHON ...`.
_PLAIN = re.compile(r"[\w@%+=:,./-]+", re.ASCII)
_QUOTED = re.compile(r'[^"$`\\\n!]*')
_HOST_FAILED = re.compile(rb"pdsh@[^:]*: [^:]+: ssh exited with exit code")
_EXPORTED = ("MLFLOW", "NCCL", "PYTHON", "MV2", "UCX")


@dataclass(frozen=True)
class DeepspeedOptions:
    """Run COMMAND on every rank under DeepSpeed's launcher."""

    hostfile: Path | None = None
    """Hosts, one a line: NAME slots=N."""
    ranks_per_node: int | None = None
    """Ranks here, without a hostfile (RANKS_PER_NODE; else 1)."""
    no_ssh: bool = False
    """Start this node only, without ssh or pdsh."""
    node_rank: int | None = None
    """This host's line in the hostfile, from 0."""
    master_addr: str | None = None
    """Where ranks meet; None is the first host."""
    master_port: int = MASTER_PORT
    """Its port."""
    dry_run: bool = False
    """Print the command and start nothing."""


def launcher_arguments(options: DeepspeedOptions, env: Mapping[str, str]) -> tuple[list[Host], list[str], bool]:
    """Hosts, DeepSpeed's arguments without the hostfile, and whether ranks are started by pdsh.

    Raises:
        LaunchError: a flag or host that does not fit.
    """
    ranks: int | str | None = options.ranks_per_node
    if ranks is None and options.hostfile is None:
        ranks = env.get("RANKS_PER_NODE") or 1
    if options.hostfile is not None and ranks is not None:
        raise LaunchError(f"--ranks-per-node {ranks} with --hostfile {options.hostfile}: slots= in the file would fit")
    if options.hostfile is not None:
        hosts = read_hosts(options.hostfile)
    else:
        hosts = [Host("localhost", whole_number_within("--ranks-per-node", ranks or 0, 1, 1024))]
    alone = len(hosts) == 1 and hosts[0].name in ("localhost", "127.0.0.1")
    if options.no_ssh and len(hosts) > 1 and options.node_rank is None:
        raise LaunchError(f"--no-ssh with {len(hosts)} hosts: also needs --node-rank, 0 to {len(hosts) - 1}")
    if options.node_rank is not None and not (options.no_ssh or alone):
        raise LaunchError(f"--node-rank {options.node_rank}: only with --no-ssh, where each node is started by hand")
    rank = whole_number_within("--node-rank", options.node_rank or 0, 0, len(hosts) - 1)
    master = check_host("--master-addr", options.master_addr or ("127.0.0.1" if alone else hosts[0].name))
    port = whole_number_within("--master-port", options.master_port, 1, 65535)
    arguments = ["--master_addr", master, "--master_port", str(port), "--no_local_rank"]
    by_pdsh = not (options.no_ssh or alone)
    if by_pdsh:
        return hosts, [*arguments, "--launcher", "pdsh", "--force_multi", "--no_ssh_check"], True
    return hosts, [*arguments, "--no_ssh", "--node_rank", str(rank)], False


def check_remote_shell(env: Mapping[str, str], directory: str, script: str) -> None:
    """Check that a remote shell does not interpret any text that DeepSpeed puts on its command line.

    Raises:
        LaunchError: a directory, interpreter or exported variable has characters that a shell interprets.
    """
    for what, path in (("directory", directory), ("repository", script), ("interpreter", sys.executable)):
        if not _PLAIN.fullmatch(path):
            raise LaunchError(
                f"{what} {path!r}: pdsh needs a path of letters, digits and @%+=:,./-_; --no-ssh takes any"
            )
    for name, value in env.items():
        if name.startswith(_EXPORTED) and not (_PLAIN.fullmatch(name) and _QUOTED.fullmatch(value)):
            raise LaunchError(
                f"{name}={value!r}: a shell would read it on the way to other hosts; unset it, or --no-ssh"
            )


class LauncherProcess:
    """DeepSpeed's launcher as a child process.

    Signals are sent directly to the parents of the ranks (`rank_parent`), and the launcher then returns their exit
    code. If the launcher got the signal, it would end the ranks one after the other and exit with 1; with pdsh it would
    end every run of DeepSpeed on the hosts.

    Args:
        tell: sends a signal to the ranks on other hosts, and returns whether there are any; None if they are here.
    """

    def __init__(self, argv: Sequence[str], tell: Callable[[int], bool] | None = None) -> None:
        self.argv, self.tell = argv, tell
        self.process: subprocess.Popen[bytes] | None = None
        self.received: list[int] = []
        self._early: list[int] = []
        self.deaths: list[Death] = []
        self._ended = False
        self._others: threading.Timer | None = None

    def execute(self) -> int:
        """Run to the end; the exit code of the rank that failed first, or DeepSpeed's (128 + n for signal n)."""
        for number in FORWARDED:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._forward)
        # A group of its own: Ctrl-C reaches the ranks once, through here. srun gives its warning to every process, and
        # DeepSpeed's own would die of it. Standard input ends with this process, and with it the ranks.
        self.process = subprocess.Popen(
            self.argv,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN),
        )
        with _killed_with_this_process(self.process.pid) if self.tell else nullcontext():
            copy = threading.Thread(target=self._copy, daemon=True)
            copy.start()
            # Ranks may be there before the line that starts them has returned.
            for early in self._early:
                self._pass(early)
            code = wait_and_hear(self.process)
            copy.join(5)
        deaths = in_order(self.deaths)
        if deaths:
            code = deaths[0].code
        code = code if code >= 0 else 128 - code
        if deaths and not (self.received and code in ENDED_BY_SIGNAL):
            for line in report(NAME, deaths, FINAL_CODES):
                print(line, file=sys.stderr)
        return 128 + self.received[0] if self._ended and not deaths else code

    def _copy(self) -> None:
        """Copy standard error, and take the deaths of ranks from it."""
        assert self.process is not None
        assert self.process.stderr is not None
        for line in self.process.stderr:
            _, mark, text = line.partition(MARK.encode())
            if mark:
                with suppress(ValueError, TypeError):
                    self.deaths.append(Death(**json.loads(text)))
                    continue
            if _HOST_FAILED.match(line) and self.tell is not None and not self._others:
                # Ranks of other hosts may wait for those of this one for ever.
                self._others = threading.Timer(GRACE, self._end_others, [self.tell])
                self._others.daemon = True
                self._others.start()
            with suppress(OSError):
                os.write(2, line)

    def _end_others(self, tell: Callable[[int], bool]) -> None:
        if not tell(signal.SIGTERM):
            self._end()

    def _forward(self, number: int, frame: FrameType | None) -> None:
        told = told_already(number, self.received)
        self.received.append(number)
        if told:
            return
        if self.process is None:
            self._early.append(number)
        else:
            self._pass(number)

    def _pass(self, number: int) -> None:
        """Send a signal on to the ranks; where there is none yet, end their launcher."""
        assert self.process is not None
        passed = FORWARDED[signal.Signals(number)]
        if self.tell is not None:
            if not self.tell(passed):
                self._end()
            return
        # DeepSpeed's runner starts a launcher, which starts the ranks.
        ranks = [rank for launcher in child_processes(self.process.pid) for rank in child_processes(launcher)]
        for pid in ranks:
            with suppress(ProcessLookupError):
                os.kill(pid, passed)
        if not ranks:
            self._end()

    def _end(self) -> None:
        """End DeepSpeed's launcher, here where no rank is known yet. Ranks that are being started find their input
        closed, and end.
        """
        assert self.process is not None
        self._ended = True
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


@contextmanager
def _killed_with_this_process(group: int) -> Iterator[None]:
    """Kill a process group when this process ends without leaving, since pdsh and ssh do not notice that it has."""
    read, write = os.pipe()
    watch = subprocess.Popen(
        ["/bin/sh", "-c", f"trap '' INT TERM HUP USR1; read -r line; kill -9 -{group}"],
        stdin=read,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(read)
    try:
        yield
    finally:
        watch.kill()
        watch.wait()
        os.close(write)


def launch(options: DeepspeedOptions, command: Sequence[str]) -> int:
    """Start the ranks and wait for them. Returns the exit code: the ranks' own.

    Raises:
        LaunchError: an option or the command does not fit, a program is missing, or a host cannot be reached.
    """
    need_command(command, EXAMPLES[0])
    hosts, arguments, by_pdsh = launcher_arguments(options, os.environ)
    if not by_pdsh:
        command = found_command(command)
    deepspeed = find_program("deepspeed")
    if deepspeed is None:
        raise LaunchError("deepspeed: not found; install it with pip install 'deepspeed>=0.19.4,<0.20'")
    if by_pdsh and shutil.which("pdsh") is None:
        raise LaunchError(
            "pdsh: not found; install the packages pdsh and openssh-client, or start each host with --no-ssh"
        )
    script, token = str(Path(__file__).resolve().with_name("packed.py")), f"run-{secrets.token_hex(8)}"
    if by_pdsh:
        check_remote_shell(os.environ, os.getcwd(), script)
    with tempfile.TemporaryDirectory(prefix="altup-moe-") as directory:
        hostfile = Path(directory, "hosts")
        hostfile.write_text("".join(f"{host.line()}\n" for host in hosts))
        line = [deepspeed, "--hostfile", str(hostfile), *arguments, script, pack(command), token]
        if options.dry_run:
            print(hostfile.read_text() + shlex.join(line))
            return 0
        # Nothing is compiled for it at start.
        os.environ.setdefault("DS_BUILD_OPS", "0")
        if not by_pdsh:
            return LauncherProcess(line).execute()
        check_hosts(hosts, os.getcwd(), script)
        return LauncherProcess(line, partial(tell_ranks, hosts, script, token)).execute()
