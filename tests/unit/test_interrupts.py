"""Ctrl-C before training has begun is one line and 130, whatever a library makes of it; only the first rank says it."""

from __future__ import annotations

import signal
import subprocess
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from altup_moe.cli import COMMANDS, main
from altup_moe.config import UserError
from altup_moe.train.stop_signal import StopSignal

LINE = "altup-moe: interrupted (Ctrl-C)\n"


def pressed(words: list[str]) -> int:
    signal.raise_signal(signal.SIGINT)
    raise AssertionError("Ctrl-C is not heard")


def turned_into(error: BaseException) -> Callable[[list[str]], int]:
    def command(words: list[str]) -> int:
        try:
            return pressed(words)
        except KeyboardInterrupt:
            raise error from None

    return command


def ends_in_training(words: list[str]) -> int:
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        return 75 if stop.caught else 0


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, command: Callable[[list[str]], int]) -> None:
    module = types.ModuleType(name)
    module.main = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, f"altup_moe.commands.{name.replace('-', '_')}", module)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str) -> None:
    stand_in(monkeypatch, name, pressed)
    assert main([name]) == 130
    assert capfd.readouterr() == ("", LINE)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("error", [UserError("no text"), ImportError("numpy"), SystemExit(1), RuntimeError("C++")])
def test_what_a_library_makes_of_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: BaseException
) -> None:
    stand_in(monkeypatch, "train", turned_into(error))
    assert main(["train"]) == 130
    assert capfd.readouterr() == ("", LINE)


def test_an_error_of_its_own_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(words: list[str]) -> int:
        raise RuntimeError("a fault")

    stand_in(monkeypatch, "train", command)
    with pytest.raises(RuntimeError, match="a fault"):
        main(["train"])


def test_other_ranks_are_silent(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    stand_in(monkeypatch, "train", pressed)
    monkeypatch.setenv("RANK", "63")
    assert main(["train"]) == 130
    assert capfd.readouterr() == ("", "")


def test_training_takes_the_signal_over(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    stand_in(monkeypatch, "train", ends_in_training)
    assert main(["train"]) == 75
    assert capfd.readouterr() == ("", "")


def test_one_that_a_library_swallowed_ends_the_command_before_it_trains(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def command(words: list[str]) -> int:
        with suppress(KeyboardInterrupt):
            pressed(words)
        with StopSignal():
            raise AssertionError("training begins")

    stand_in(monkeypatch, "train", command)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["train"]) == 130
    assert capfd.readouterr() == ("", LINE)
    assert signal.getsignal(signal.SIGTERM) is before


IMPORTS = """
class Press:
    def find_spec(self, name, path=None, target=None):
        if name == "torch.nn":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
"""
TOKENISES = """
from altup_moe.data import tokenizer
some = tokenizer._some
def pressed(texts, name):
    os.kill(os.getpid(), signal.SIGINT)
    yield from some(texts, name)
tokenizer._some = pressed
"""


@pytest.mark.slow
@pytest.mark.parametrize("while_it", [IMPORTS, TOKENISES], ids=["imports", "tokenises"])
def test_a_process_while_it_imports_and_tokenises(while_it: str, tmp_path: Path) -> None:
    """The signal comes in the imports of torch, and while BPE is trained: in code that is not ours."""
    (tmp_path / "run.yaml").write_text("log: {run_dir: run}\ndata: {cache: cache}\n")
    code = (
        f"import os, signal, sys\n{while_it}\nfrom altup_moe.cli import main\nsys.exit(main(['train', 'run.yaml']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (130, LINE), done.stdout
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
