"""`log.profile_steps`: the recorded steps' spans, a trace and a picture in the run directory; nothing changes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.timeline.overlap import overlap
from altup_moe.timeline.records import read_recording
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import losses, records, text_run, train_on_ranks

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    directory = tmp_path_factory.mktemp("runs")
    steps = {"train": {"steps": 5}}
    plain = text_run("ep2", directory, "plain", **steps)
    recorded = text_run("ep2", directory, "recorded", **steps)
    recorded = replace(recorded, log=replace(recorded.log, profile_steps=2))
    for config in (plain, recorded):
        assert train_on_ranks("ep2", config) == [0, 0]
    return plain, recorded


def test_every_part_of_a_step_has_spans_on_every_rank(runs: tuple) -> None:
    directory = Path(runs[1].log.run_dir) / "profile"
    events = json.loads((directory / "trace.json").read_text())["traceEvents"]
    for rank in (0, 1):
        names = {e["name"] for e in events if e["pid"] == rank and e["ph"] == "X"}
        assert {"attention", "route", "dispatch", "mix", "experts", "combine", "axpy", "mlp"} <= names
        both = {"attention", "dispatch", "mix", "experts", "combine", "axpy"}
        assert {f"{name} backward" for name in both} <= names
    assert (directory / "step.png").read_bytes().startswith(b"\x89PNG")


def test_two_steps_are_recorded(runs: tuple) -> None:
    directory = Path(runs[1].log.run_dir) / "profile"
    assert [len(json.loads((directory / f"rank_{r}.json").read_text())["steps"]) for r in (0, 1)] == [2, 2]
    assert not (Path(runs[0].log.run_dir) / "profile").exists()


def test_recording_changes_no_loss_and_its_figures_are_in_the_metrics(runs: tuple) -> None:
    assert losses(runs[0]) == losses(runs[1])
    plain, recorded = map(records, runs)
    assert [record["step"] for record in recorded if "exchange_ms" in record] == [4]
    # Those of the recordings. Which is larger is up to the machine: a wait goes on after its exchange has ended.
    files = sorted((Path(runs[1].log.run_dir) / "profile").glob("rank_*.json"))
    expected = overlap(map(read_recording, files))
    names = ("exchange_ms", "exposed_ms", "mixing_ms", "mixing_hidden_ms")
    assert {name: recorded[3][name] for name in names} == {name: getattr(expected, name) for name in names}
    assert all(recorded[3][name] > 0 for name in names)
    assert not any("exchange_ms" in record for record in plain)


def _profile_of_a_short_run(run_dir: str) -> int:
    from altup_moe.config import ParallelConfig
    from altup_moe.parallel.topology import topology
    from altup_moe.train.profile import WARM_UP, Profile

    with topology(ParallelConfig()) as topo:
        profile = Profile(5, Path(run_dir), [], topo)
        for _ in range(WARM_UP + 1):
            with profile.step():
                pass
        profile.close()
    return len(json.loads((Path(run_dir) / "rank_0.json").read_text())["steps"])


def test_a_run_that_ends_first_writes_what_it_has(tmp_path: Path) -> None:
    assert run_ranks(1, _profile_of_a_short_run, str(tmp_path)) == [1]
