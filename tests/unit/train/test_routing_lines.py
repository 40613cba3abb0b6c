"""routing.jsonl and starts.jsonl: what is summed, when a line is written, and what a resumed run leaves of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.config import LogConfig, MoEConfig, RunConfig, TrainConfig
from altup_moe.train.loggers import RoutingLines, open_loggers
from altup_moe.train.metrics import RoutingLoads
from altup_moe.train.routing import RoutingSummary, RoutingSums
from altup_moe.train.start_record import append_start, start_record
from tests.unit.train.records import MOE, record


def summary(step: int) -> RoutingSummary:
    """A dense layer, and one with three experts."""
    return RoutingSummary([[0.0] * 3, [1.0 * step, 2.0, 3.0]], 0.0, 0.0, 0.0, 1.0, [0.0, 1.0])


def config(interval: int | None, steps: int = 7, stop_after: int | None = None) -> RunConfig:
    """Of a run with experts."""
    return RunConfig(
        moe=MoEConfig(num_experts=3),
        train=TrainConfig(steps=steps, stop_after=stop_after),
        log=LogConfig(routing_interval=interval),
    )


@pytest.mark.parametrize(
    ("interval", "steps", "due"),
    [(3, 7, [3, 6, 7]), (None, 7, [1, 2, 3, 4, 5, 6, 7]), (None, 250, [3, 6, 9, 10]), (0, 7, []), (10, 7, [7])],
)
def test_routes_are_summed_until_they_are_due(interval: int | None, steps: int, due: list[int]) -> None:
    """At the interval (a hundredth of the steps if none is given), and at the last step, 10 of 250 too (stop_after)."""
    last = min(steps, 10)
    sums = RoutingSums(config(interval, steps, last))
    found = {step: loads for step in range(1, last + 1) if (loads := sums.step(summary(step), step))}
    assert list(found) == due
    before = 0
    for step, loads in found.items():
        covered = range(before + 1, step + 1)
        assert loads == RoutingLoads(len(covered), [[], [sum(covered), 2.0 * len(covered), 3.0 * len(covered)]],
                                     [0.0, 1.0 * len(covered)])  # fmt: skip
        before = step
    assert sums.step(None, 1) is None


def test_a_line_for_some_steps_and_a_resumed_run_does_not_count_twice(tmp_path: Path) -> None:
    path, loads = tmp_path / "routing.jsonl", RoutingLoads(2, [[], [4.0, 6.0]], [0.0, 1.0])
    logger = RoutingLines(path, 1)
    for step in range(1, 7):
        logger.log(record(step, **MOE, routing=loads if step % 2 == 0 else None))
    logger.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": n, "steps": 2, "routes": [[], [4, 6]], "dropped": [0, 1]} for n in (2, 4, 6)]
    RoutingLines(path, 4).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2]
    assert len((tmp_path / "routing.removed.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(("experts", "interval", "there"), [(3, None, True), (3, 0, False), (0, None, False)])
def test_the_file_is_there_if_it_has_a_use(experts: int, interval: int | None, there: bool, tmp_path: Path) -> None:
    log = LogConfig(run_dir=str(tmp_path), tensorboard=False, routing_interval=interval)
    for logger in open_loggers(RunConfig(moe=MoEConfig(num_experts=experts), log=log), 1):
        logger.close()
    assert (tmp_path / "routing.jsonl").exists() is there


def test_every_start_is_a_line_of_its_own(tmp_path: Path) -> None:
    path, run = tmp_path / "starts.jsonl", config(None)
    append_start(path, start_record(run, 1, 0, None, 0.5))
    path.write_text(path.read_text() + '{"step": 3, "ti')  # a crash
    parallel = replace(run.parallel, expert=2)
    append_start(path, start_record(replace(run, parallel=parallel), 2, 4, "step_00000004", 0.5))
    first, cut, second = path.read_text().splitlines()
    assert cut == '{"step": 3, "ti'
    known = json.loads(second)
    assert (known["step"], known["checkpoint"], known["ranks"]) == (4, "step_00000004", 2)
    assert known["layout"] == "expert 2, data 2 on 2 ranks"
    assert json.loads(first)["layout"] == "1 rank"
    assert known["time"].endswith("+00:00")
    assert known["processor"]
    assert known["libraries"]["torch"].startswith("2.")
