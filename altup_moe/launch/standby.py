"""Ranks of a restart start from a process that has torch and Megatron imported: seconds less for each failure.

The launcher of a node holds one such process (`standby_process`), the template. It starts beside the first ranks and
imports what they import. When torchrun's agent starts ranks again the template forks them: the agent becomes their
parent, so that signals, exit codes and the death of the launcher act on them as on any rank. Whatever is not as it
should be (another command, no Linux, threads in the template, no answer in time) starts the rank as ever.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from altup_moe.parallel.patches import START_RANK, original, replace

PR_SET_CHILD_SUBREAPER = 36
ANSWER_SECONDS = 60.0
"""How long the agent waits for a fork, which takes milliseconds. A rank whose answer nobody reads ends."""
POLL_SECONDS = 0.01
WAIT_SECONDS = 10.0
"""The first ranks start meanwhile; then they leave some time to the template."""
NO_RANK = "-00001"
"""RANK of the template. The forked rank writes its own there, where `/proc/PID/environ` shows it."""
WRAPPER = "parent_death.py"
"""Script before a rank's command, which ends it with the launcher (`parallel.parent_death`)."""


def training_words(args: Sequence[str]) -> list[str] | None:
    """What follows `altup-moe` in a rank's command line, if that is a training by this interpreter; else None.

    Args:
        args: the command, perhaps behind `WRAPPER` and its arguments.
    """
    command = unwrapped(args)[1]
    if len(command) > 3 and command[0] == sys.executable and "-m" in command[1:3]:
        module = command.index("-m") + 1
        words = command[module + 1 :] if command[module] == "altup_moe" and command[1] in ("-P", "-m") else []
    else:
        words = command[1:] if command and _is_own_script(Path(command[0])) else []
    return words if words[:1] == ["train"] else None


def unwrapped(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """(words of the wrapper, the command behind it): ``[python, ..., parent_death.py, --stop, PID]``, or nothing."""
    words = list(args)
    script = next((place for place, word in enumerate(words[:5]) if Path(word).name == WRAPPER), None)
    if script is None:
        return [], words
    end = script + (3 if words[script + 1 : script + 2] == ["--stop"] else 2)
    return words[:end], words[end:]


def _is_own_script(path: Path) -> bool:
    """Whether a file is the `altup-moe` that pip has written for this interpreter."""
    if path.name != "altup-moe":
        return False
    with suppress(OSError, UnicodeDecodeError):
        text = path.read_text(encoding="utf-8")[:2000]
        return text.startswith(f"#!{sys.executable}\n") and "from altup_moe.cli import main" in text
    return False


class AdoptedProcess:
    """A child process that another process has forked; what torchrun uses of `subprocess.Popen`."""

    def __init__(self, pid: int, args: Sequence[str]) -> None:
        self.pid, self.args = pid, list(args)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code (-n for signal n), or None while it runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                self.returncode = 1  # somebody else has collected it
                return self.returncode
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; returns the exit code.

        Raises:
            subprocess.TimeoutExpired: it runs longer than `timeout` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() >= end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(POLL_SECONDS)
        return code


class Standby:
    """The template of a node. Only the main thread may use it: its process ends with the thread that started it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._answers = -1
        self._ready = False

    @property
    def pid(self) -> int | None:
        """The template's process; None while there is none."""
        return self._process.pid if self._process is not None else None

    @property
    def ready(self) -> bool:
        """Whether the template can fork. One that has died is gone from then on."""
        if self._process is not None and not self._ready and _readable(self._answers, 0.0):
            with suppress(OSError):
                self._ready = self._answer() == "ready"
            if not self._ready:
                self.end()
        return self._ready

    def begin(self, args: Sequence[str], env: Mapping[str, str], wait: float = WAIT_SECONDS) -> None:
        """Start the template with a rank's environment.

        Args:
            args: the rank's words; the template's own leave room for them, so that `ps` can show them.
            wait: seconds that it leaves to the ranks before it imports.
        """
        answers, theirs = os.pipe()
        command = [sys.executable, "-P", "-m", "altup_moe.standby_process", str(os.getpid()), str(theirs)]
        command.append(str(wait))
        command.append("-" * len(" ".join(args).encode()))
        try:
            self._process = subprocess.Popen(
                command, env={**env, "RANK": NO_RANK}, stdin=subprocess.PIPE, pass_fds=[theirs], start_new_session=True
            )
        finally:
            os.close(theirs)
        self._answers = answers

    def fork(self, args: Sequence[str], env: Mapping[str, str]) -> AdoptedProcess | None:
        """A rank's process, started by the template; None if it cannot be, and then there is no template any more."""
        if not self.ready or self._process is None:
            return None
        assert self._process.stdin is not None
        # Of two processes that the template starts one below the other the first ends: the agent adopts the second.
        _adopt(True)
        try:
            self._process.stdin.write(json.dumps({"args": list(args), "env": dict(env)}).encode() + b"\n")
            self._process.stdin.flush()
            return AdoptedProcess(int(self._answer()), args)
        except (OSError, ValueError):
            self.end()
            return None
        finally:
            _adopt(False)

    def _answer(self) -> str:
        line, end = b"", time.monotonic() + ANSWER_SECONDS
        while not line.endswith(b"\n"):
            if not _readable(self._answers, end - time.monotonic()):
                raise OSError("no answer")
            line += os.read(self._answers, 1) or b"no\n"
        return line.decode("ascii").strip()

    def end(self) -> None:
        """End the template."""
        process, self._process, self._ready = self._process, None, False
        if process is not None:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()
            os.close(self._answers)


def _readable(descriptor: int, seconds: float) -> bool:
    return bool(select.select([descriptor], [], [], max(0.0, seconds))[0])


def _adopt(orphans: bool) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(orphans), 0, 0, 0)


@contextmanager
def standby(restarts: bool, wait: float = WAIT_SECONDS) -> Iterator[Standby]:
    """While open, torchrun's agent starts ranks again from a template.

    Args:
        restarts: whether there may be any; otherwise nothing is done. wait: as in `Standby.begin`.
    """
    template, start = Standby(), original(START_RANK)
    if not restarts or not sys.platform.startswith("linux"):
        yield template
        return

    def started(self: Any, args: tuple[str, ...], env: dict[str, str]) -> Any:
        if self._stdout is not None or self._stderr is not None or training_words(args) is None:
            return start(self, args, env)
        forked = template.fork(args, env)
        if forked is not None:
            return forked
        process = start(self, args, env)
        if template.pid is None:
            template.begin(args, env, wait)
        return process

    replace(START_RANK, started)
    try:
        yield template
    finally:
        replace(START_RANK, start)
        template.end()
