"""Where records go: metrics.jsonl that a crash cannot spoil, lines on the console, TensorBoard, missing trackers."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

from altup_moe.config import ConfigError, LogConfig, RunConfig
from altup_moe.config.packages import check_loggers
from altup_moe.parallel.watchdog import notes
from altup_moe.parallel.watchdog.watcher import TRACKING, TRAINING
from altup_moe.train.log_files import JsonLines
from altup_moe.train.loggers import BestEffort, Console, open_loggers
from altup_moe.train.tensorboard_files import TensorBoard
from tests.unit.train.records import MOE, VALID, record


def write(path: Path, first: int, last: int, **fields: object) -> None:
    logger = JsonLines(path, first)
    for step in range(first, last + 1):
        logger.log(record(step, **fields))
    logger.close()


def read(path: Path) -> list[dict]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_the_watchdog_is_told_of_the_time_in_a_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str | None] = []
    monkeypatch.setattr(notes, "progress", told.append)

    class Tracker:
        def log(self, metrics: object) -> None:
            told.append("log")

        def log_texts(self, step: int, texts: object) -> None:
            raise OSError("no server")

        def close(self) -> None:
            told.append("close")

    tracker = BestEffort(Tracker())
    tracker.log(record(1))
    tracker.log_texts(1, [])
    tracker.close()
    assert told == [TRACKING, "log", TRAINING, TRACKING, TRAINING, TRACKING, "close", TRAINING]


def test_a_line_a_step_with_the_fields_that_have_a_value(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 2)
    assert read(path) == [record(step).to_dict() for step in (1, 2)]
    assert "valid_loss" not in read(path)[0]
    assert "aux_loss" not in read(path)[0]
    write(path, 3, 3, **MOE, **VALID)
    assert read(path)[2]["valid_bits_per_byte"] == 1.375
    assert read(path)[2]["dropped_share"] == 0.125


def test_steps_done_again_replace_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 9, loss=1.0)
    write(path, 6, 7, loss=2.0)
    assert [(line["step"], line["loss"]) for line in read(path)] == [
        *((n, 1.0) for n in range(1, 6)),
        (6, 2.0),
        (7, 2.0),
    ]


def test_a_fresh_start_begins_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 5)
    JsonLines(path, 1).close()
    assert path.read_text() == ""


UNREADABLE = {
    "cut short": b'{"step": 4, "loss": 2.',
    "no step": b'{"loss": 2.5}',
    "a step that is no number": b'{"step": true}',
    "zeros": b"\x00\x00\x00",
    "null": b"null",
    "a list": b"[1]",
    "not UTF-8": b'{"step": 4, "note": "\xff"}',
    "deep": b"[" * 100_000,
    "two lines in one": b'{"step": 4, "lo{"step": 5}',
}


@pytest.mark.parametrize("where", [0, 2, 9])
@pytest.mark.parametrize("damage", UNREADABLE.values(), ids=UNREADABLE)
def test_a_damaged_line_costs_no_other(
    damage: bytes, where: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever can be read up to the resumed step stays as it is, byte for byte; the rest is beside."""
    path, beside = tmp_path / "metrics.jsonl", tmp_path / "metrics.removed.jsonl"
    write(path, 1, 12, loss=1.0)
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(where, damage + b"\n")
    lines.insert(1, b"\n")
    path.write_bytes(b"".join(lines))
    write(path, 11, 11, loss=2.0)
    whole = b"".join(line for line in lines if line not in (damage + b"\n", b"\n"))
    assert path.read_bytes().splitlines(keepends=True)[:10] == whole.splitlines(keepends=True)[:10]
    assert [(line["step"], line["loss"]) for line in read(path)] == [*((n, 1.0) for n in range(1, 11)), (11, 2.0)]
    assert beside.read_bytes() == damage + b"\n" + b"".join(whole.splitlines(keepends=True)[10:])
    number = where + 2 if where else 1
    assert capsys.readouterr().out == (
        f"metrics.jsonl: 2 line(s) of steps from 11 on and 1 line(s) that cannot be read ({number})"
        " moved to metrics.removed.jsonl\n"
    )


def test_what_is_moved_is_added_to_what_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, beside = tmp_path / "metrics.jsonl", tmp_path / "metrics.removed.jsonl"
    write(path, 1, 3)
    assert not beside.exists()
    assert capsys.readouterr().out == ""
    write(path, 3, 4)
    write(path, 3, 3)
    assert [line["step"] for line in read(beside)] == [3, 3, 4]
    assert [line["step"] for line in read(path)] == [1, 2, 3]


def test_the_first_line_holds_what_the_run_has_changed(tmp_path: Path) -> None:
    """Every line stays one step's: who reads steps needs to know nothing of it."""
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 2)
    logger = JsonLines(path, 3, {"optim.learning_rate": (0.1, 0.2), "train.steps": (9, 12)})
    for step in (3, 4):
        logger.log(record(step))
    logger.close()
    changed = {"optim.learning_rate": [0.1, 0.2], "train.steps": [9, 12]}
    assert read(path) == [record(1).to_dict(), record(2).to_dict(), {**record(3).to_dict(), "changed": changed},
                          record(4).to_dict()]  # fmt: skip


def test_a_line_without_its_end_is_kept_apart_from_the_next(tmp_path: Path) -> None:
    """The crash may have taken the newline alone."""
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 3)
    path.write_text(path.read_text().rstrip("\n"))
    write(path, 4, 4)
    assert [line["step"] for line in read(path)] == [1, 2, 3, 4]


def test_nan_and_infinity_become_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 1, grad_norm=math.nan, loss=math.inf, lm_loss=-math.inf)
    (line,) = read(path)
    assert line["grad_norm"] is line["loss"] is line["lm_loss"] is None
    assert line["step"] == 1


def test_lines_are_there_before_the_run_ends(tmp_path: Path) -> None:
    logger = JsonLines(tmp_path / "metrics.jsonl", 1)
    logger.log(record(1))
    assert len(read(tmp_path / "metrics.jsonl")) == 1
    logger.close()


def test_piped_console_prints_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    # The first step takes long, the others 90 s each: the time left does not count the first.
    times = iter([500.0 + 90 * step for step in range(10)])
    console = Console(steps=10, interval=4, first_step=1, clock=lambda: next(times))
    for step in range(1, 11):
        console.log(record(step, **(VALID if step == 7 else {})))
    console.close()
    lines = capsys.readouterr().out.splitlines()
    # Every fourth step, the last one, and the one with a validation; each is the record's line and the time left.
    left = {4: " | 0:09:00 left", 7: " | 0:04:30 left", 8: " | 0:03:00 left", 10: ""}
    assert lines == [record(step, **(VALID if step == 7 else {})).line(10) + left[step] for step in left]
    assert "\x1b" not in "".join(lines)


def test_terminal_console_keeps_whole_lines_above_the_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "60")  # narrower than a line: it must not be cut
    console = Console(steps=3, interval=1, first_step=2)
    for step in (2, 3):
        console.log(record(step))
    console.close()
    out = capsys.readouterr().out
    assert record(2).line(3) in out
    assert "left" not in out, "the bar has it"
    assert "3/3" in out
    console.close()  # once more does no harm


@pytest.mark.parametrize(("key", "package"), [("wandb_project", "wandb"), ("mlflow_experiment", "mlflow")])
def test_a_missing_tracker_is_named(key: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = set()
    monkeypatch.setattr("altup_moe.config.packages.find_spec", lambda name: object() if name in known else None)
    check_loggers(LogConfig())  # nothing is asked for
    with pytest.raises(ConfigError, match=f"pip install {package}") as error:
        check_loggers(LogConfig(**{key: "mine"}))
    assert (error.value.key, error.value.value) == (f"log.{key}", "mine")
    known.add(package)
    check_loggers(LogConfig(**{key: "mine"}))


def test_tensorboard_files_hold_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoard(RunConfig(log=LogConfig(run_dir=str(tmp_path))), first_step=1)
    logger.log(record(1, grad_norm=math.nan))
    logger.log(record(2, loss=2.0, **VALID))
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss/total")] == [(1, 2.5), (2, 2.0)]
    assert [(e.step, e.value) for e in events.Scalars("validation/loss")] == [(2, 3.25)]
    assert len(events.Tags()["scalars"]) == len(record(2, **VALID).to_dict()) - 1


def test_loggers_of_a_run(tmp_path: Path) -> None:
    def kinds(**log: object) -> list[str]:
        loggers = open_loggers(RunConfig(log=LogConfig(run_dir=str(tmp_path), **log)), 1)
        for logger in loggers:
            logger.close()
        return [type(logger).__name__ for logger in loggers]

    assert kinds(tensorboard=False) == ["JsonLines", "Console"]
    assert not (tmp_path / "tensorboard").exists()
    assert kinds() == ["JsonLines", "Console", "TensorBoard"]
    assert (tmp_path / "metrics.jsonl").is_file()
    assert list((tmp_path / "tensorboard").iterdir())
