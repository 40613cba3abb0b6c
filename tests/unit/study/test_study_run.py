"""A study from start to end with children that pretend: who runs beside whom, what is kept, what is not done again."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from altup_moe.config import UserError
from altup_moe.config.exit_codes import EXIT_STOPPED
from altup_moe.study.read_study import load_study
from altup_moe.study.records import StudyRow
from altup_moe.study.run import grown, run_study
from altup_moe.study.spec import Study
from altup_moe.study.study_directory import StudyDirectory
from tests.unit.study.test_study_spec import SMALL

# Does what a study's child does, as the row's name wants it, and writes down that it was started.
PRETEND = """
import json, os, pathlib, signal, sys, time
kind, options, roots = sys.argv[1], json.loads(sys.argv[2]), [pathlib.Path(root) for root in sys.argv[3:]]
events = pathlib.Path(__file__).with_name("events.txt")
names = [root.name.rpartition("-s")[0] for root in roots]
def note(word):
    with events.open("a") as file:
        file.write(f"{kind} {word}\\n")
note("+".join(names))
root, name = roots[0], names[0]
if kind == "train":
    beside = events.with_name("running")
    beside.mkdir(exist_ok=True)
    mine = beside / str(os.getpid())
    mine.touch()
    note(f"beside {len(list(beside.iterdir()))}")
    (root / "run").mkdir(exist_ok=True)
    line = {"step": 1, "lm_loss": 2.0, "step_seconds": 0.1, "memory_gib": 0.5}
    (root / "run" / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
    def leave(number, frame):
        note("saved " + name)
        sys.exit(75)
    signal.signal(signal.SIGTERM, leave)
    if name.startswith("waits"):
        note("waiting")
        time.sleep(60)
    deadline = time.monotonic() + 60
    while name.startswith("pair") and events.read_text().count("train pair") < 2:
        if time.monotonic() > deadline:
            sys.exit("the other of the pair did not come")
        time.sleep(0.01)
    mine.unlink()
    if name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "says":
        (root / "failure.txt").write_text("UserError: no text is that long\\n")
        sys.exit(1)
    if name == "prints":
        print("first", "RuntimeError: last words", "", sep="\\n")
        sys.exit(1)
    problem = "the loss is not finite at step 1" if name == "burns" else None
    figures = {"valid_loss": 2.0, "valid_bits_per_byte": 1.0, "experts": None, "problem": problem, "device": "cpu"}
    (root / "trained.json").write_text(json.dumps({**figures, "wall_seconds": 0.1}))
elif kind in ("steps", "texts"):
    if "unmeasured" in names and kind == "steps":
        sys.exit("RuntimeError: too slow")
    figures = {"seconds": [0.1]} if kind == "steps" else {"prefill_seconds": [0.1], "decode_seconds": [0.1]}
    for root in roots:
        (root / f"{kind}-{options['number']}.json").write_text(json.dumps(figures))
elif "unprepared" in names:
    print("error: the corpus cannot be fetched")
    sys.exit(2)
"""


class Stage:
    """A directory with a study in it, whose children pretend."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.root = directory, directory / "study"
        (directory / "pretend.py").write_text(PRETEND)

    def study(self, *names: str, after: dict[str, str] | None = None) -> Study:
        """Rows of these names, all different; ``after``: which row comes after which."""
        rows: list[dict] = [
            {"name": name, "set": {"optim.learning_rate": 0.1 * (n + 1)}} for n, name in enumerate(names)
        ]
        for row in rows:
            row |= {"after": (after or {})[row["name"]]} if row["name"] in (after or {}) else {}
        file = self.directory / "small.yaml"
        file.write_text(yaml.safe_dump({**SMALL, "seeds": [1], "rows": rows, "measure": {"rounds": 2}}))
        return load_study(file)

    def events(self, kind: str) -> list[str]:
        """What was done so far."""
        file = self.directory / "events.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.removeprefix(f"{kind} ") for line in lines if line.startswith(kind)]

    def rows(self) -> dict[str, StudyRow]:
        """Lines by name."""
        return {row.name: row for row in StudyDirectory(self.root).finished().values()}


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(
        "altup_moe.study.worker_processes.worker_command",
        lambda words, row: [sys.executable, str(tmp_path / "pretend.py"), *words],
    )
    monkeypatch.setattr("altup_moe.study.run.usable_cores", lambda: 2)
    return Stage(tmp_path)


def test_all_rows_are_trained_two_at_a_time_then_measured_together(stage: Stage) -> None:
    # The first ends once the second has begun.
    names = ["pair-1", "pair-2", "c", "d"]
    assert run_study(stage.study(*names), stage.root) == 0
    beside = [each for each in stage.events("train") if each.startswith("beside")]
    assert sorted(each for each in stage.events("train") if each not in beside) == sorted(names)
    assert set(beside) <= {"beside 1", "beside 2"}
    assert stage.events("steps") == stage.events("texts") == ["+".join(names)] * 2
    assert stage.events("prepare") == ["d"]
    rows = stage.rows()
    assert list(rows) == names
    assert {row.status for row in rows.values()} == {"done"}
    assert rows["c"].latency is not None
    assert rows["c"].latency.train_step.count == 2


def test_what_the_report_will_not_say_is_said_before_training(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_study(stage.study("dense", "wide"), stage.root) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[2][:22] for line in said[:2]] == ["speed at equal quality", "one seed, so no spread"]
    assert said.index(next(line for line in said if line.startswith("trained"))) > 1


def test_finished_rows_are_not_repeated_and_new_ones_are_added(stage: Stage) -> None:
    run_study(stage.study("a"), stage.root, jobs=1)
    before = (stage.root / "rows.jsonl").read_text()
    assert run_study(stage.study("a", "b"), stage.root, jobs=1) == 0
    assert [each for each in stage.events("train") if each in "ab"] == ["a", "b"]
    assert stage.events("steps") == ["a", "a", "b", "b"]
    assert (stage.root / "rows.jsonl").read_text().startswith(before)


def test_failures_are_kept_with_their_reason_and_stop_nobody(stage: Stage) -> None:
    study = stage.study("dies", "says", "prints", "burns", "good")
    assert run_study(study, stage.root) == 1
    reasons = {name: row.reason for name, row in stage.rows().items()}
    assert reasons == {
        "dies": "killed by signal 9",
        "says": "UserError: no text is that long",
        "prints": "RuntimeError: last words",
        "burns": "the loss is not finite at step 1",
        "good": None,
    }
    assert stage.rows()["dies"].steps == 1
    assert stage.events("steps") == ["good", "good"]
    begun = len(stage.events("train"))
    assert run_study(study, stage.root) == 1
    assert len(stage.events("train")) == begun
    (stage.root / "rows" / study.rows[0].key / "mark").touch()
    assert run_study(study, stage.root, retry_failed=True) == 1
    assert len([each for each in stage.events("train") if each == "good"]) == 1
    assert len([each for each in stage.events("train") if each == "dies"]) == 2
    assert not (stage.root / "rows" / study.rows[0].key / "mark").exists()
    assert len(stage.rows()) == 5


def test_rows_are_trained_after_those_they_start_from(stage: Stage) -> None:
    study = stage.study("a", "b", "c", "d", after={"b": "a", "c": "b"})
    assert run_study(study, stage.root) == 0
    trained = [each for each in stage.events("train") if each in "abcd"]
    assert [each for each in trained if each != "d"] == ["a", "b", "c"]
    assert {row.status for row in stage.rows().values()} == {"done"}


def test_rows_after_a_failed_one_fail_with_its_reason_and_are_not_trained(stage: Stage) -> None:
    study = stage.study("burns", "b", "c", "good", after={"b": "burns", "c": "b"})
    assert run_study(study, stage.root) == 1
    why = f"not trained: {study.rows[0].key} failed: the loss is not finite at step 1"
    assert {name: row.reason for name, row in stage.rows().items()} == {
        "burns": "the loss is not finite at step 1",
        "b": why,
        "c": why,
        "good": None,
    }
    assert sorted(each for each in stage.events("train") if "beside" not in each) == ["burns", "good"]
    # A new row that comes after one that failed in an earlier call fails too; one after a finished row is trained.
    more = stage.study("burns", "b", "c", "good", "e", "f", after={"b": "burns", "c": "b", "e": "c", "f": "good"})
    assert run_study(more, stage.root) == 1
    rows = stage.rows()
    assert str(rows["e"].reason).startswith("not trained: ")
    assert str(rows["e"].reason).endswith("the loss is not finite at step 1")
    assert rows["f"].status == "done"
    assert sorted(each for each in stage.events("train") if "beside" not in each) == ["burns", "f", "good"]


def test_a_row_that_cannot_be_measured_does_not_take_the_others_with_it(stage: Stage) -> None:
    assert run_study(stage.study("a", "unmeasured", "b"), stage.root) == 1
    assert stage.events("steps") == ["a+unmeasured+b", "a", "unmeasured", "b", "a+b"]
    assert stage.rows()["unmeasured"].reason == "measuring: RuntimeError: too slow"
    assert stage.rows()["b"].status == "done"


def test_data_that_cannot_be_had_is_the_user_s_affair(stage: Stage) -> None:
    with pytest.raises(UserError, match=r"^the corpus cannot be fetched$"):
        run_study(stage.study("unprepared"), stage.root)
    assert stage.rows() == {}


def test_a_signal_has_children_save_and_leaves_none(stage: Stage) -> None:
    def interrupt() -> None:
        while stage.events("train").count("waiting") < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    assert run_study(stage.study("waits-1", "waits-2", "c"), stage.root) == EXIT_STOPPED
    thread.join()
    assert sorted(each for each in stage.events("train") if "saved" in each) == ["saved waits-1", "saved waits-2"]
    assert "c" not in stage.events("train")
    assert stage.rows() == {}


def test_rows_of_a_ladder_follow_once_its_tries_are_trained(stage: Stage) -> None:
    file = stage.directory / "ladder.yaml"
    tune = {"optim.learning_rate": [0.001, 0.002, 0.004]}
    ladder = {"sizes": [32], "tokens_per_parameter": [1, 2], "families": [{"name": "wide"}], "tune": tune}
    base = {**SMALL["base"], "optim": {"warmup_steps": 5}}  # type: ignore[dict-item]
    file.write_text(yaml.safe_dump({"base": base, "seeds": [1], "ladder": ladder, "measure": {"rounds": 1}}))
    study = load_study(file)
    assert run_study(study, stage.root) == 0
    trained = [each for each in stage.events("train") if "beside" not in each]
    # All losses are equal, so the lowest rate is the best one and the grid goes on below it, twice.
    tries = [f"wide-d32-learning_rate-{rate:g}" for rate in (0.001, 0.002, 0.004, 0.0005, 0.00025)]
    assert sorted(trained[:3]) == sorted(tries[:3])
    assert trained[3:5] == tries[3:]
    assert trained[5:] == ["wide-d32-t2", "wide-d32-t1"]
    assert stage.events("steps") == stage.events("texts") == ["wide-d32-t2+wide-d32-t1"]
    rows = stage.rows()
    assert {name: (row.role, row.status, row.latency is None) for name, row in rows.items()} == {
        **dict.fromkeys(tries, ("tuning", "done", True)),
        **dict.fromkeys(("wide-d32-t2", "wide-d32-t1"), ("trained", "done", False)),
    }
    assert rows["wide-d32-t1"].overrides["optim.learning_rate"] == 0.00025
    # The first step of the run that it branches off, and its own (each pretends one step of 0.1 s).
    assert rows["wide-d32-t1"].train_seconds == pytest.approx(0.2)
    assert run_study(load_study(file), stage.root) == 0
    assert [each for each in stage.events("train") if "beside" not in each] == trained
    # A row that follows from what is tuned is begun anew as any other.
    lines = [
        replace(row, status="failed", quality=None, reason="once") for row in rows.values() if row.name[-2:] == "t1"
    ]
    kept = [row for row in rows.values() if row.name[-2:] != "t1"]
    (stage.root / "rows.jsonl").write_text("".join(row.line() + "\n" for row in (*kept, *lines)))
    assert run_study(load_study(file), stage.root, retry_failed=True) == 0
    trained.append("wide-d32-t1")
    assert [each for each in stage.events("train") if "beside" not in each] == trained
    assert stage.rows()["wide-d32-t1"].status == "done"
    # The lines alone say what was tuned: the tries' files may be removed.
    for row in study.rows:
        StudyDirectory(stage.root).of_row(row).clear()
    known = grown(load_study(file), StudyDirectory(stage.root)).rows
    assert {row.name for row in known} == set(rows)
    assert run_study(load_study(file), stage.root) == 0
    assert [each for each in stage.events("train") if "beside" not in each] == trained
