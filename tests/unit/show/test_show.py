"""`altup-moe show`: what it prints of finished, running, old and damaged runs, and what its page holds."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from altup_moe import cli
from altup_moe.commands.show import main
from altup_moe.config import AltUpConfig
from altup_moe.config.locks import is_locked, locked_directory
from altup_moe.show.curves import RATIOS, heat_map
from altup_moe.show.events import events, resumes
from altup_moe.show.read_run import read_run, short_names
from tests.show_runs import step_line, write_lines, write_run

OLD = Path(__file__).parents[2] / "golden" / "before_restructuring"


class Page(HTMLParser):
    """A page's text, and the JSON inside."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text, self.data = "", None
        self._inside = False
        self.raw = path.read_text(encoding="utf-8")
        self.feed(self.raw)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = ("id", "data") in attrs

    def handle_data(self, content: str) -> None:
        if self._inside and self.data is None:
            self.data = json.loads(content)
        self.text += content + " "


def shown(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    """The headline of the first run."""
    assert main([*map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return {**found["runs"][0], "page": found["page"]}


def test_the_headline_of_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    assert main([str(run)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert 8 <= len(said) <= 14
    text = "\n".join(said)
    for part in (
        "finished, 400 steps",
        "decoder, 4 layers, d = 256, AltUp K = 4 (altup), 8 experts, top 2",
        "7.25M, 4M active",
        "expert 2, data 2 on 2 ranks",
        "Some CPU 2.0 GHz, 2 cores, 1 thread a rank",
        "lm loss ",
        "best ",
        "1.64M tokens in ",
        "1 resume(s), 1 skipped step(s)",
        f"wrote {run / 'report.html'}",
    ):
        assert part in text
    found = shown(capsys, run)
    assert (found["state"], found["step"], found["steps"]) == ("finished", 400, 400)
    assert (found["width"], found["variant"], found["experts"]) == (4, "altup", 8)
    assert found["tokens"] == 400 * 16 * 256
    assert found["best_valid_loss"] <= found["valid_loss"]
    assert found["notes"] == []


def test_the_page_holds_curves_routes_history_and_configuration_and_asks_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    page = Page(Path(shown(capsys, run)["page"]))
    assert re.search(r"default-src 'none'; img-src data:; style-src 'sha256-", page.raw)
    assert [url for url in re.findall(r"https?://[^\"'\s)]+", page.raw) if "w3.org" not in url] == []
    assert len(page.raw.encode()) < 300_000
    assert page.data is not None
    keys = [chart["key"] for chart in page.data["charts"]]
    assert {"lm_loss", "valid_loss", "grad_norm", "tokens_per_second", "dropped_share", "skipped_steps"} <= set(keys)
    assert "z_loss" not in keys  # all zeros
    assert {"key": "eval/squad/f1", "label": "squad: f1 (%)", "roof": 1.0} in page.data["charts"]
    (data,) = page.data["runs"]
    assert len(data["curves"]["lm_loss"]) == 200
    step, tokens, hours, mean, least, most = data["curves"]["lm_loss"][-1]
    assert (step, tokens) == (400, 400 * 16 * 256)
    assert 0 < hours < 1
    assert least <= mean <= most
    assert [p[0] for p in data["curves"]["valid_loss"]] == list(range(50, 401, 50))
    assert [mark[0] for mark in data["marks"]] == [200]
    assert [layer["layer"] for layer in data["routing"]["layers"]] == [1, 3]
    assert len(data["routing"]["steps"]) == 50
    for part in (
        "resumed from step_00000200 on 2 rank(s)",
        "2026-11-20 12:00:00",
        "steps 201 to 202 were done again",
        "changed optim.learning_rate 0.001 -> 0.002",
        "profile: exchange 12.5 ms a step, of which 4.00 ms were waited for; mixing 2.00 ms, of which 1.75 ms were",
        "The cat",
        "sat on mat 400.",
        "altup.width",
    ):
        assert part in page.text
    assert page.text.index("sat on mat 400.") < page.text.index("sat on mat 300.")


def test_several_runs_share_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = write_run(tmp_path / "a" / "run")
    narrow = write_run(tmp_path / "b" / "run", last=260, altup=AltUpConfig(width=1))
    found = shown(capsys, wide, narrow)
    assert found["page"] == str(wide / "comparison.html")
    assert found["name"] == "a/run"
    page = Page(wide / "comparison.html")
    assert page.data is not None
    assert [run["name"] for run in page.data["runs"]] == ["a/run", "b/run"]
    differing = page.text[page.text.index("What differs") : page.text.index("Curves")]
    assert "altup.width" in differing
    assert "log.run_dir" not in differing
    assert "train.steps" not in differing
    assert shown(capsys, wide, narrow, "--output", tmp_path / "x.html")["page"] == str(tmp_path / "x.html")
    assert (tmp_path / "x.html").is_file()


def test_a_run_that_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line that is being written is no step yet; the lock says that somebody trains, and looking takes nothing."""
    run = write_run(tmp_path / "run", last=100)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 101, "lo')
    with locked_directory(run, "training", "wait"):
        assert is_locked(run)
        found = shown(capsys, run)
    assert (found["state"], found["step"]) == ("running", 100)
    assert found["left_seconds"] == pytest.approx(300 * found["step_seconds"])
    assert not is_locked(run)
    assert not is_locked(tmp_path / "nowhere")
    stopped = shown(capsys, run)
    assert (stopped["state"], stopped["left_seconds"]) == ("stopped", None)
    assert main([str(run)]) == 0
    assert f"stopped at step 100 of 400; altup-moe train {run}/config.yaml begins anew" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["decoder", "t5", "dynamic"])
def test_a_run_of_an_older_version(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = copytree(OLD / name, tmp_path / name)
    found = shown(capsys, run)
    assert found["state"] == {"decoder": "stopped"}.get(name, "finished")
    assert found["hardware"] is None
    assert found["layout"].endswith("ranks" if name == "decoder" else "1 rank")
    assert found["parameters"] > 1000
    assert found["libraries"]["torch"]
    assert found["checkpoint"].startswith("step_000000")
    page = Page(run / "report.html")
    if found["experts"]:
        assert "Routes by expert are not recorded" in page.text


def test_damage_is_said_and_costs_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", last=20)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    lines[4] = b"\x00\xff\n"
    lines[9] = lines[9].replace(b'"grad_norm": ', b'"grad_norm": NaN, "x": ')
    lines[10] = lines[10].replace(b'"step_seconds": ', b'"step_seconds": "soon", "x": ')
    (run / "metrics.jsonl").write_bytes(b"".join(lines))
    (run / "routing.jsonl").write_bytes(b'{"step": 4, "routes": 3}\n{"step": 8, "routes": [[], [1, "2"]]}\n[]\n')
    (run / "samples.jsonl").write_bytes(b'{"step": 4}\n')
    (run / "starts.jsonl").write_bytes(b'{"step": 0}\n{"ste')
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "latest").write_text("../../etc")
    found = shown(capsys, run)
    assert found["step"] == 20
    assert [note.partition(":")[0] for note in found["notes"]] == [
        "metrics.jsonl", "routing.jsonl", "starts.jsonl", "newest checkpoint"
    ]  # fmt: skip
    assert "1 line(s) cannot be read (5)" in found["notes"][0]
    page = Page(run / "report.html")
    assert page.data is not None
    norms = {point[0]: point[3] for point in page.data["runs"][0]["curves"]["grad_norm"]}
    assert norms[10] is None
    assert norms[9] is not None
    assert 5 not in norms
    assert "no lines of steps 5 to 5" in page.text


def test_a_configuration_that_this_version_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", last=20)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("width:", "widths:"))
    found = shown(capsys, run)
    assert (found["steps"], found["parameters"], found["experts"]) == (400, None, 8)
    assert "altup.widths" in found["notes"][0]
    config.write_text("[")
    assert shown(capsys, run)["steps"] is None
    # A run that has only begun has no lines.
    for path in run.glob("*.jsonl"):
        path.unlink()
    assert shown(capsys, run)["state"] == "not started"


def test_resumes_of_a_run_without_recorded_starts(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "starts.jsonl").unlink()
    import random

    again = [step_line(step, random.Random(0)) for step in (301, 302, 303, 301)]
    write_lines(run / "metrics.removed.jsonl", again)
    found = read_run(run)
    assert resumes(found) == [200, 300]
    assert [(e.step, e.what) for e in events(found) if "resumed" in e.what] == [
        (step, "resumed (a start of an older version)") for step in (200, 300)
    ]


def test_a_heat_map_has_a_bounded_size() -> None:
    lines = [{"step": n, "steps": 1, "routes": [[n] * 256] * 64, "dropped": [0] * 64} for n in range(1, 31)]
    found = heat_map(lines)
    assert found is not None
    assert sum(len(load) for layer in found["layers"] for load in layer["loads"]) <= RATIOS
    assert found["steps"][-1] == 30
    assert {ratio for layer in found["layers"] for load in layer["loads"] for ratio in load} == {100}
    # Another number of experts, as in a run that was begun anew: what the last line has counts.
    other = [{"step": 1, "routes": [[], [1, 2]]}, {"step": 2, "routes": [[1, 3], []]}]
    assert heat_map(other) == {"steps": [2], "layers": [{"layer": 0, "loads": [[50, 150]]}]}
    assert heat_map([]) is None


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names([Path("/a/run")]) == ["run"]
    assert short_names([Path("/a/x/run"), Path("/a/y/run"), Path("/a/y/other")]) == ["x/run", "y/run", "y/other"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "RUNS is missing, as in altup-moe show runs/quickstart"),
        (["--json"], "RUNS is missing"),
        (["nothing"], "nothing': there is no such directory; type altup-moe "),
        (["run", "run"], "names a run twice"),
        (["run", "--ouput", "x"], "nearest is --output"),
        (["run", "--output", "no/where.html"], "output='no/where.html': cannot be written (No such file"),
        (["run"] * 43, "at most 42 would fit"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", last=3)
    assert cli.main(["show", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line
    assert not list(tmp_path.rglob("*.html"))
