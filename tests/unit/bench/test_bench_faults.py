"""`bench faults`: the schedule, the account of outages, the comparison of metrics. Nothing is started here."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from altup_moe.bench.bench_faults import measured
from altup_moe.bench.faults import inject
from altup_moe.bench.faults.account import Event, by_kind, check_records, first_difference, outages, read_lines
from altup_moe.bench.faults.available import left_out
from altup_moe.bench.faults.commands import batch_size, train_command
from altup_moe.bench.faults.follow import Follower
from altup_moe.bench.faults.processes import alive, of_run, ranks_of, send
from altup_moe.bench.faults.report import Measured, Outcome, as_json, table
from altup_moe.bench.faults.schedule import JITTER, Planned, schedule, victim
from altup_moe.bench.faults.supervise import FaultsError, Seen, Supervisor
from altup_moe.bench.options import FaultKind, FaultsBench
from altup_moe.cli import main
from altup_moe.config.checks import check_config
from altup_moe.config.load import load_config
from tests.processes import wait_until

KINDS: tuple[FaultKind, ...] = ("kill-rank", "kill-launcher", "slow-rank")


def test_the_schedule_is_a_function_of_its_seed() -> None:
    planned = schedule(KINDS, 600, 60, 7)
    assert planned == schedule(KINDS, 600, 60, 7)
    assert planned != schedule(KINDS, 600, 60, 8)
    assert len(planned) == 9, "none comes so late that there is no time to recover"
    for number, one in enumerate(planned, 1):
        assert abs(one.second - 60 * number) <= 60 * JITTER
        assert one.held == 18
    for three in (planned[:3], planned[3:6], planned[6:]):
        assert {one.kind for one in three} == set(KINDS), "every kind comes as often as the others"
    assert schedule(KINDS, 60, 60, 7) == []
    assert {one.held for one in schedule(["stop-rank"], 600, 60, 7)} == {300.0}, "the watchdog ends it"


def test_a_draw_names_a_victim() -> None:
    assert [victim(draw, [5, 1, 3]) for draw in (0.0, 0.34, 0.99)] == [1, 3, 5]


def progress(second: float, step: int) -> Event:
    return Event(second, "progress", step)


def test_an_outage_is_split_by_what_the_run_was_at() -> None:
    events = [
        progress(0.0, 10),
        progress(1.0, 14),
        Event(2.0, "fault", kind="kill-rank", fatal=True),
        progress(2.5, 15),  # a step that was written before the kill
        Event(3.0, "gone"),
        Event(9.0, "started", 10, load=1.5),
        progress(9.5, 10),  # the file as the start has cut it
        progress(10.0, 13),
        progress(11.0, 15),
        progress(11.5, 17),
        progress(12.0, 18),
    ]
    (one,) = outages(events)
    assert one.seconds == {"detect": 1.0, "restart": 4.5, "load": 1.5, "redo": 2.5}
    assert (one.lost_steps, one.ended, one.kinds, one.total) == (5, True, ["kill-rank"], 9.5)


def test_a_second_fault_inside_an_outage_belongs_to_it() -> None:
    events = [
        progress(0.0, 10),
        Event(1.0, "fault", kind="kill-rank", fatal=True),
        Event(2.0, "gone"),
        Event(3.0, "fault", kind="kill-launcher", fatal=True),  # while ranks start
        Event(4.0, "gone"),
        Event(6.0, "started", 8, load=0.5),
        progress(7.0, 9),
        Event(8.0, "fault", kind="kill-rank", fatal=True),  # while steps are done again
        Event(9.0, "gone"),
        Event(11.0, "started", 8, load=0.5),
        progress(13.0, 11),
    ]
    (one,) = outages(events)
    assert one.kinds == ["kill-rank", "kill-launcher", "kill-rank"]
    assert one.lost_steps == 2 + 1
    assert one.seconds == {"detect": 2.0, "restart": 5.0, "load": 1.0, "redo": 4.0}
    assert one.total == 12.0
    (cost,) = by_kind([one])
    assert (cost.kind, cost.number, cost.faults, cost.lost_steps, cost.median) == ("kill-rank", 1, 3, 3, 12.0)


def test_ranks_that_end_by_a_fault_that_should_not_end_them_are_an_outage() -> None:
    events = [progress(0.0, 5), Event(1.0, "fault", kind="full-disk"), progress(2.0, 6), Event(3.0, "gone")]
    (one,) = outages([*events, Event(5.0, "started", 5), progress(6.0, 7)])
    assert (one.kinds, one.lost_steps, one.total) == (["full-disk"], 1, 3.0)
    assert outages([*events[:3], progress(4.0, 7)]) == []


def line(step: int, **changes: Any) -> dict[str, Any]:
    usual = {"loss": 5.0 / step, "lm_loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.1}
    return {"step": step, "consumed_samples": 8 * step, "step_seconds": 0.1, **usual, **changes}


def test_what_is_missing_or_twice_is_counted() -> None:
    whole = [line(step) for step in range(1, 6)]
    good = check_records(whole, [line(5), line(9)], 8)
    assert (good.steps, good.lost, good.repeated, good.redone, good.differing) == (5, 0, 0, 1, 0)
    assert good.step_seconds == pytest.approx(0.1)
    assert check_records([whole[0], *whole[2:]], [], 8).lost == 8
    assert check_records([*whole, whole[2]], [], 8).repeated == 8
    assert check_records([*whole[:4], line(5, consumed_samples=32)], [], 8).lost == 8
    assert check_records(whole, [line(5, loss=1.0000001)], 8).differing == 1


def test_numbers_are_compared_bit_for_bit() -> None:
    ours = [line(1, grad_norm=float("nan")), line(2)]
    assert first_difference(ours, [line(1, grad_norm=float("nan")), line(2, step_seconds=9.0)]) is None
    assert first_difference(ours, [*ours, line(3)]) == 3
    assert first_difference(ours, [ours[0], line(2, loss=2.5000000000000004)]) == 2
    assert read_lines('{"step": 1}\n{"ste\n[1]\n{"step": 2}') == [{"step": 1}, {"step": 2}]


def test_a_file_is_followed_through_its_replacement(tmp_path: Path) -> None:
    file, other = tmp_path / "metrics.jsonl", tmp_path / "new"
    follower = Follower(file)
    assert follower.new() == []
    file.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [one["step"] for one in follower.new()] == [1, 2]
    with file.open("a") as out:
        out.write('ep": 3}\n')
    assert [one["step"] for one in follower.new()] == [3]
    other.write_text('{"step": 1}\n')
    other.replace(file)
    assert [one["step"] for one in follower.new()] == [1]
    assert follower.new() == []


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("nodes", [False, True])
def test_the_command_is_a_configuration_that_fits(ranks: int, nodes: bool, tmp_path: Path) -> None:
    options = FaultsBench(ranks=ranks, nodes=nodes, memory_interval=3)
    words = train_command(options, tmp_path / "run", tmp_path / "tokens", stop_after=7)
    assert ("netlab" in words) is nodes
    keys = words[words.index("quickstart") + 1 :]
    config = load_config("quickstart", keys)
    check_config(config, ranks)
    assert config.train.global_batch_size == batch_size(ranks)
    assert (config.train.stop_after, config.checkpoint.memory_interval) == (7, 3)


def test_kinds_that_cannot_be_had_are_named() -> None:
    assert left_out(nodes=False)["kill-node"] == "needs --nodes"
    assert "kill-node" not in left_out(nodes=True)
    assert set(left_out(nodes=False)) <= set(get_args(FaultKind))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ranks", "5"], "--ranks=5"),
        (["--every", "61", "--minutes", "1"], "--every=61.0: is longer than all of --minutes; at most 60 would fit"),
        (["--minutes", "0"], "--minutes=0.0"),
        (["--kinds", "kill-node"], "--kinds='kill-node': needs --nodes"),
        (["--kinds", "kill-rnk"], "kill-rank"),
        (["--directory", "/nowhere/at/all"], "--directory='/nowhere/at/all': must be a new directory"),
    ],
)
def test_mistakes_are_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "faults", *words]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert says in error


def outcome(**changes: Any) -> Outcome:
    records = check_records([line(step) for step in range(1, 101)], [line(100)], 8)
    seen = Seen(victims=["kill-rank of rank 1"], starts=1, codes=[75])
    events = [progress(0, 100), Event(1, "fault", kind="kill-rank", fatal=True), Event(1.5, "gone")]
    found = outages([*events, Event(5.5, "started", 90, load=1.0), progress(7.0, 101)])
    run = Measured(seen, found, records, wall=20.0)
    return Outcome(
        **{"run": run, "quiet": Measured(Seen(), [], records, 12.5), "differs": None, "left_out": {}, **changes}
    )


def test_the_table() -> None:
    lines = table(FaultsBench(), outcome(left_out={"slow-rank": "needs root"}))
    assert lines[0] == "1 fault(s) in 20 s on 2 ranks under torchrun, seed 1: kill-rank 1"
    assert lines[1] == "not injected: slow-rank (needs root)"
    assert lines[4].split() == ["kill-rank", "1", "1", "10", "0.50", "3.00", "1.00", "1.50", "6.00", "6.00"]
    assert lines[6] == "goodput 0.500: 100 steps of 100 ms (median) in 20 s; a quiet run: 0.800"
    lost = "detect 0.5, restart 3.0, load 1.0, steps done again 0.1, slower steps 0.0, between steps 5.4"
    assert lines[7] == f"seconds lost: {lost}"
    assert lines[8].endswith("steps done again 1, with other numbers 0; orphans 0")
    assert lines[9] == "numbers of 100 steps: bit for bit those of a quiet run"
    assert json.loads(json.dumps(as_json(FaultsBench(), outcome())))["run"]["goodput"] == pytest.approx(0.5)


def test_only_lost_time_is_forgiven() -> None:
    assert outcome().kept
    assert not outcome(differs=3).kept
    bad = outcome().run
    assert not outcome(run=Measured(Seen(orphans=1), [], bad.records, 1.0)).kept
    assert "step 3 of 100 steps differs from a quiet run" in table(FaultsBench(), outcome(differs=3))[-1]


def test_a_run_is_measured_from_its_files(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line(step)) + "\n" for step in (1, 2)))
    (tmp_path / "metrics.removed.jsonl").write_text(json.dumps(line(2)) + "\n" + '{"cut')
    found = measured(Seen(first=10.0, last=12.0), tmp_path, 8)
    assert (found.records.steps, found.records.redone, found.wall) == (2, 1, 2.0)
    assert found.goodput == pytest.approx(0.1)


PROGRAM = "import signal, sys, time; signal.pause()"


def test_ranks_are_found_by_their_directory(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    rank = subprocess.Popen(argv, env={**os.environ, "RANK": "1"})
    launcher = subprocess.Popen(argv, env={key: value for key, value in os.environ.items() if key != "RANK"})
    try:
        # Where an exec has only begun, the kernel shows no words of the process yet.
        wait_until(lambda: len(of_run(tmp_path)) == 2, "both processes")
        assert ranks_of(tmp_path) == {1: rank.pid}
        assert set(of_run(tmp_path)) == {rank.pid, launcher.pid}
        assert of_run(tmp_path / "other") == []
        target = inject.Target(launcher.pid, tmp_path, tmp_path)
        done = inject.inject(Planned(0, "kill-rank", 0.5, 0), target)
        assert done is not None
        assert done.victim == "rank 1"
        assert rank.wait(20) == -signal.SIGKILL
        assert inject.inject(Planned(0, "kill-launcher", 0.5, 0), target) is None, "no rank is there"
        assert not alive(rank.pid)
    finally:
        for process in (rank, launcher):
            process.kill()
            process.wait()
    send([rank.pid], signal.SIGTERM)


def test_a_disk_is_filled_and_freed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = 3 * 2**20 + 5

    class Disk:
        written = 0

        def write(self, data: bytes) -> int:
            if self.written + len(data) > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.written += len(data)
            return len(data)

        def __enter__(self) -> Disk:
            return self

        def __exit__(self, *_: object) -> None: ...

    disk, file = Disk(), tmp_path / inject.FILLER
    file.touch()
    monkeypatch.setattr(inject, "open", lambda *_, **__: disk, raising=False)
    undo = inject._fill(file)
    assert disk.written == room
    undo()
    assert not file.exists()


def supervisor(tmp_path: Path, program: str) -> Supervisor:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    argv = [sys.executable, "-c", program, str(run_dir)]
    return Supervisor(argv, run_dir, tmp_path, tmp_path / "console.txt")


WRITES = """
import json, os, signal, sys, time
os.environ["RANK"] = "0"
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
file = open(sys.argv[1] + "/metrics.jsonl", "a")
step = sum(1 for _ in open(sys.argv[1] + "/metrics.jsonl"))
print("began after", step, flush=True)
while True:
    step += 1
    file.write(json.dumps({"step": step}) + chr(10))
    file.flush()
    if step == 5:
        sys.exit(CODE)
    time.sleep(0.02)
"""


def test_a_command_that_can_go_on_is_started_again_and_stopped_at_the_end(tmp_path: Path) -> None:
    seen = supervisor(tmp_path, WRITES.replace("CODE", "77")).run([], 1.0)
    assert seen.codes == [77, 75]
    assert (seen.starts, seen.orphans) == (2, 0)
    assert of_run(tmp_path / "run") == []


def test_what_was_seen_is_told_when_the_run_could_not_be_kept_going() -> None:
    broken = outcome(quiet=None, broken="the command ended with exit code 2")
    assert not broken.kept
    assert as_json(FaultsBench(), broken)["broken"] == "the command ended with exit code 2"
    assert table(FaultsBench(), broken)[-1] == "it did not go on: the command ended with exit code 2"
    assert any(one.startswith("goodput 0.500") for one in table(FaultsBench(), broken))


def test_a_command_that_cannot_go_on_is_not_started_again(tmp_path: Path) -> None:
    with pytest.raises(FaultsError, match=r"exit code 76; its last lines were: began after 0"):
        supervisor(tmp_path, WRITES.replace("CODE", "76")).run([], 60.0)
