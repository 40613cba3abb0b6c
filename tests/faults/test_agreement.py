"""Ranks that differ, or of which one alone has a mistake: none trains, all end with 2, and one line says why."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import pytest

from altup_moe.train.fingerprints import code_hashes
from tests.distributed.cases import with_long
from tests.distributed.ranks import run_ranks
from tests.distributed.test_launchers import ROOT, SMALL, environment, free_port
from tests.processes import running, started

pytestmark = pytest.mark.distributed

WORDS = [*(word for key, value in SMALL.items() for word in (f"--{key}", str(value))), "--train.steps", "2"]


@dataclass(frozen=True)
class Differs:
    """What rank 1 has that rank 0 has not, and what the line says."""

    says: str
    words: tuple[str, ...] = ()
    both: tuple[str, ...] = ()
    where: str = "a"
    patched: tuple[str, object] | None = None
    own: bool = False
    """Whether it is rank 1's own mistake, which rank 1 prints."""


def _version(name: str) -> str:
    return "0.0.1" if name == "torch" else version(name)


def _code() -> dict[str, str]:
    return {**code_hashes(), "code altup_moe/train/step.py": "0123"}


def _environment(variables: Mapping[str, str]) -> list[tuple[str, str]]:
    return [("NVIDIA_TF32_OVERRIDE", "0")]


NEW = ("--log.run_dir", "new")
"""A run that has no checkpoint."""
CASES = {
    "seed": Differs("train.seed is 7 on rank 1 (HOST) and 1234 on rank 0 (HOST)", ("--train.seed", "7")),
    "learning rate": Differs("optim.learning_rate is 0.5 on rank 1", ("--optim.learning_rate", "0.5")),
    "top_k": Differs("moe.top_k is 1 on rank 1 (HOST) and 2 on rank 0", ("--moe.top_k", "1")),
    "batch": Differs("train.global_batch_size is 8 on rank 1", ("--train.global_batch_size", "8")),
    "layout": Differs("parallel.tensor is 2 on rank 1 (HOST) and 1 on rank 0", ("--parallel.tensor", "2")),
    "code": Differs("code altup_moe/train/step.py is 0123 on rank 1", patched=("code_hashes", _code)),
    "library": Differs("version of torch is 0.0.1 on rank 1", patched=("version", _version)),
    "environment": Differs(
        "environment NVIDIA_TF32_OVERRIDE is 0 on rank 1 (HOST) and missing on rank 0",
        patched=("_environment", _environment),
    ),
    # From here on by the directory that a rank works in: `data` and `run` are relative paths, as on disks of nodes.
    "data": Differs("tokens of the data is ", where="other data", both=NEW),
    "checkpoint": Differs("checkpoint to go on from is none on rank 1 (HOST) and step_00000002 (", where="no run"),
    "no data": Differs("data/tokens.bin: ", where="no data", own=True),
    "a mistake": Differs("train.seed='x': expects a whole number", ("--train.seed", "x"), own=True),
}


@contextmanager
def _in(directory: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(directory)
    try:
        yield
    finally:
        os.chdir(before)


def _start(root: Path, words: list[str], case: Differs | None) -> tuple[int, str, int]:
    """On a rank: the command. Returns its exit code, what it said on standard error, and the steps it took."""
    from altup_moe.cli import main

    own = case if case is not None and os.environ["RANK"] == "1" else Differs("")
    said, printed = io.StringIO(), io.StringIO()
    with ExitStack() as stack:
        stack.enter_context(_in(root / own.where))
        stack.enter_context(contextlib.redirect_stderr(said))
        stack.enter_context(contextlib.redirect_stdout(printed))
        if own.patched:
            name, value = own.patched
            stack.enter_context(patch(f"altup_moe.train.fingerprints.{name}", value))
        code = main(["train", "quickstart", *words, *own.words])
    return code, said.getvalue(), printed.getvalue().count("step ")


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of two ranks: a (data, and a run at step 2), and such as rank 1 may have instead."""
    from altup_moe.cli import main

    root = tmp_path_factory.mktemp("agreement")
    for name, line in (("a", "the quick brown fox "), ("other data", "jumps over the lazy dog ")):
        text = root / name / "text.txt"
        text.parent.mkdir()
        text.write_text("\n\n".join(f"{line * 40}{n}" for n in range(60)))
        out = root / name / "data" / "tokens"
        assert main(["prepare-data", str(text), str(out), "--vocab_size", "320"]) == 0
    for name in ("no run", "no data"):
        (root / name).mkdir()
    (root / "no run" / "data").symlink_to(root / "a" / "data")
    shutil.copytree(root / "a" / "data", root / "no data" / "data")
    (root / "no data" / "data" / "tokens.bin").unlink()
    return root


@pytest.fixture(scope="module")
def words(directories: Path) -> list[str]:
    """The command's words, of a run that has taken two of four steps."""
    words = [*WORDS, "--data.corpus", "data/tokens", "--log.run_dir", "run", "--data.cache", str(directories / "cache")]
    answers = run_ranks(2, _start, directories, words, None)
    assert [code for code, *_ in answers] == [0, 0], answers
    for name in ("other data", "no data"):
        (directories / name / "run").symlink_to(directories / "a" / "run")
    return [*words, "--train.steps", "4", "--optim.warmup_steps", "0"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("learning rate", marks=pytest.mark.fault("config-differs")),
        pytest.param("code", marks=pytest.mark.fault("code-differs")),
        pytest.param("data", marks=pytest.mark.fault("data-differs")),
        *sorted(CASES.keys() - {"a mistake", "learning rate", "code", "data"}),
    ],
)
def test_two_ranks(name: str, directories: Path, words: list[str], saw: Callable[[float, int, str], None]) -> None:
    case, began = CASES[name], time.monotonic()
    (zero, zero_said, zero_steps), (one, one_said, one_steps) = run_ranks(
        2, _start, directories, [*words, *case.both], case
    )
    assert (zero, one) == (2, 2), (zero_said, one_said)
    assert zero_steps == one_steps == 0, "no step was taken"
    line, silent = (one_said, zero_said) if case.own else (zero_said, one_said)
    assert silent == ""
    assert case.says in line.replace(f"({platform.node()})", "(HOST)")
    assert line.startswith("altup-moe: error: on rank 1 (" if case.own else "altup-moe: error: ranks differ: ")
    assert line.count("\n") == 1
    saw(time.monotonic() - began, zero, line)


def test_equal_ranks_go_on(directories: Path, words: list[str]) -> None:
    """The same command, changed by nothing, trains on: the cases above are refused for what they change."""
    assert [code for code, *_ in run_ranks(2, _start, directories, words, None)] == [0, 0]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("signals_are_heard")
@pytest.mark.parametrize(
    ("name", "rank"),
    # Each kind once, each rank once: that rank 0 says what differs is what the cases above compare.
    with_long([("seed", 1), ("no data", 0), ("a mistake", 1)], [("seed", 0), ("no data", 1), ("a mistake", 0)]),
)
def test_two_nodes(name: str, rank: int, directories: Path, words: list[str], tmp_path: Path) -> None:
    """A launcher on each node, which hears nothing of the other's ranks: both end with 2, the line is there once."""
    case, port = CASES[name], free_port()
    line = [sys.executable, "-m", "altup_moe.cli", "train", "quickstart", *words]
    with ExitStack() as stack:
        nodes = []
        for node in range(2):
            odd = node == rank
            meeting = ["--nodes", "2", "--node-rank", str(node), "--rdzv", f"127.0.0.1:{port}", "--ranks-per-node", "1"]
            launcher = [str(ROOT / "launch" / "torchrun.sh"), *meeting, "--", *line, *(case.words if odd else ())]
            file = stack.enter_context((tmp_path / f"node{node}.txt").open("w"))
            where = directories / (case.where if odd else "a")
            nodes.append(stack.enter_context(started(launcher, env=environment(), stdout=file, stderr=file, cwd=where)))
        codes = [node.wait(300) for node in nodes]
    said = "".join((tmp_path / f"node{node}.txt").read_text() for node in range(2))
    assert codes == [2, 2], said
    assert said.count("altup-moe: error: ") == 1, said
    assert "Traceback" not in said
    assert not running(tmp_path)
