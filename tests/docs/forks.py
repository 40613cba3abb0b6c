"""Run command lines of `altup-moe` without paying their imports: one process imports, and forks a child for each.

`Forks` starts this file as a process and asks it, a JSON line a request. A child has its own session, directory and
environment; what it prints goes to a file, and after the time limit its whole session is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[2]
TIMED_OUT = 124


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (124 after the time limit), what it printed, and its CPU seconds."""

    code: int
    output: str
    seconds: float


class Forks:
    """The importing process, from this side; a context manager."""

    def __init__(self, scratch: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        self._output = scratch / "output.txt"
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.docs.forks"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait(30)

    def altup_moe(self, arguments: list[str], cwd: Path, environment: dict[str, str], timeout: float) -> Ended:
        """`altup-moe ARGUMENTS`."""
        return self._ask({"arguments": arguments}, cwd, environment, timeout)

    def python(self, code: str, cwd: Path, environment: dict[str, str], timeout: float) -> Ended:
        """A block of Python, as a file's."""
        return self._ask({"python": code}, cwd, environment, timeout)

    def _ask(self, what: dict[str, Any], cwd: Path, environment: dict[str, str], timeout: float) -> Ended:
        request = {**what, "cwd": str(cwd), "environment": environment, "timeout": timeout, "output": str(self._output)}
        assert self._server.stdin
        assert self._server.stdout
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._server.stdout.readline())
        return Ended(answer["code"], self._output.read_text(encoding="utf-8", errors="replace"), answer["seconds"])


def cpu_of_children() -> float:
    """CPU seconds of all children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _serve(requests: IO[str], answers: IO[str]) -> None:
    for line in requests:
        request = json.loads(line)
        before = cpu_of_children()
        pid = os.fork()
        if pid == 0:
            _child(request)
        code = _wait(pid, request["timeout"])
        answers.write(json.dumps({"code": code, "seconds": cpu_of_children() - before}) + "\n")
        answers.flush()


def _wait(pid: int, timeout: float) -> int:
    """The child's exit code as a shell says it; its session is gone afterwards."""
    deadline = time.monotonic() + timeout
    code = None
    while code is None and time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
        else:
            time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if code is None:
        os.waitpid(pid, 0)
        return TIMED_OUT
    return code if code >= 0 else 128 - code


def _child(request: dict[str, Any]) -> None:
    """Never returns."""
    code: object = 1
    try:
        os.setsid()
        output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (until the process ends)
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
        os.chdir(request["cwd"])
        os.environ.update(request["environment"])
        if "python" in request:
            file = Path(request["cwd"]) / "page.py"
            file.write_text(request["python"], encoding="utf-8")
            sys.argv = [str(file)]
            exec(compile(request["python"], str(file), "exec"), {"__name__": "__main__", "__file__": str(file)})
            code = 0
        else:
            from altup_moe import cli

            sys.argv = ["altup-moe", *request["arguments"]]
            code = cli.main(request["arguments"])
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def main() -> None:
    """Import what commands import, then serve."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What an import prints is no answer.
    os.dup2(2, 1)
    # First what trains: how Megatron is imported is settled once.
    for name in ("tests.distributed.preload", "altup_moe.inference.evaluate", "altup_moe.inference.generate"):
        import_module(name)

    _serve(sys.stdin, answers)
    # Nothing that was imported has anything to put in order.
    os._exit(0)


if __name__ == "__main__":
    main()
