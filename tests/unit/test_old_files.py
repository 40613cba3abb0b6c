"""Files that commit 1f16dd8 wrote, before modules were moved and renamed: later code reads every kind of them.

`tests/golden/before_restructuring/make.sh` says how they were made, `recorded.json` what that commit made of them. Only
commands are used here. A failure means that users' runs, exports or studies of that time are lost: mend the code.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from altup_moe import cli
from altup_moe.commands import inspect as inspect_checkpoint
from altup_moe.commands import plan, reshard, study
from altup_moe.commands import recipe as paper

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "golden" / "before_restructuring"
RECORDED: dict[str, Any] = json.loads((OLD / "recorded.json").read_text())
RUNS = ("decoder", "t5", "dynamic")
EXPORTS = ("decoder_hf", "t5_hf")
GENERATED: dict[str, str] = {**RECORDED["generate"], "t5": "the cat sees\n\x10es\x10\ufffd\n"}
"""What runs generate. That commit left out the end token behind what t5's encoder reads, which training puts there."""
SAME = 1e-4
"""Largest relative difference of fp32 figures between two machines."""


@pytest.fixture(autouse=True)
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old files as the working directory; all their paths are relative to it."""
    copytree(OLD, tmp_path / "old")
    for run in (*(f"{run}/tokenizer" for run in RUNS), *EXPORTS):
        copytree(OLD / "data" / "tokens.tokenizer", tmp_path / "old" / run, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


def python(*words: str) -> str:
    """What a new interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def contents(directory: Path) -> dict[Path, bytes]:
    """Every file below a directory."""
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_evaluated_and_generates(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", run, "--json"]) == 0
    found, known = json.loads(capsys.readouterr().out), RECORDED["evaluate"][run]
    assert found["loss"] == pytest.approx(known["loss"], rel=SAME)
    same = ("run", "step", "corpus", "tokens")
    assert {key: found[key] for key in same} == {key: known[key] for key in same}
    words = ["--prompt", "the cat sees", "--max_new_tokens", "12", "--temperature", "1", "--seed", "3"]
    assert cli.main(["generate", run, *words]) == 0
    assert capsys.readouterr().out == GENERATED[run]


@pytest.mark.distributed
def test_a_run_that_was_cut_goes_on_as_if_it_had_not_been(old: Path) -> None:
    """On its two ranks, with its dropout: weights, moments, counters and random streams are all read."""
    before = (old / "decoder" / "metrics.jsonl").read_text()
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "altup_moe.cli"]
    said = python(*words, "train", "decoder/config.yaml", "--train.stop_after", "24")
    assert "going on from step 18" in said
    after = (old / "decoder" / "metrics.jsonl").read_text()
    assert after.startswith(before)
    lines = [json.loads(line) for line in after.splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 25))
    for line, known in zip(lines, RECORDED["whole"], strict=True):
        there = {key: value for key, value in known.items() if value is not None}
        assert {key: line[key] for key in there} == pytest.approx(there, rel=SAME)


def test_a_checkpoint_is_inspected_and_resharded(capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_checkpoint.main(["decoder", "--verify", "--json"]) == 0
    found, known = json.loads(capsys.readouterr().out), {**RECORDED["inspect"], "verified": True}
    for entry, old_entry in zip(found.pop("entries"), known.pop("entries"), strict=True):
        assert entry["norms"] == pytest.approx(old_entry["norms"], rel=SAME)
        assert {**entry, "norms": old_entry["norms"]} == old_entry
    assert {key: found[key] for key in known} == known
    assert reshard.main(["decoder", "one", "--verify"]) == 0
    assert inspect_checkpoint.main(["decoder", "--diff", "one"]) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "one", "--json"]) == 0
    loss = RECORDED["evaluate"]["decoder"]["loss"]
    assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(loss, rel=SAME)


LOAD = """
import json, torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
ids = torch.arange(20, 28)[None]
with torch.no_grad():
    decoder = AutoModelForCausalLM.from_pretrained("decoder_hf")(ids).logits[0, -1, :8].tolist()
    t5 = AutoModelForSeq2SeqLM.from_pretrained("t5_hf")(ids, decoder_input_ids=ids).logits[0, -1, :8].tolist()
print(json.dumps({"decoder_hf": decoder, "t5_hf": t5}))
"""


@pytest.mark.slow
def test_exports_load_and_compute_the_same() -> None:
    """After the imports that the README names for exports of our own classes."""
    pages = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    text = " ".join(page.read_text(encoding="utf-8") for page in pages)
    modules = sorted(set(re.findall(r"after\s+`import (altup_moe[\w.]+)`", text)))
    assert modules
    found = json.loads(python("-c", f"import {', '.join(modules)}\n{LOAD}"))
    for name in EXPORTS:
        assert found[name] == pytest.approx(RECORDED["logits"][name], rel=SAME, abs=1e-5)


@pytest.mark.slow
def test_a_study_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert study.main(["report", "study", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == RECORDED["failed"]
    models = {model["name"]: model for model in found["models"]}
    assert list(models) == list(RECORDED["report"])
    for name, known in RECORDED["report"].items():
        assert {key: models[name][key]["mean"] for key in known} == pytest.approx(known)


def test_a_study_knows_what_it_has_done(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, state in (("study", "2 of 3 rows done, 1 failed"), ("study_cut", "0 of 3 rows done, 1 trained, 2")):
        assert study.main(["status", name]) == 0
        assert state in " ".join(capsys.readouterr().out.split())
    before = contents(old / "study")
    assert study.main(["run", "study.yaml", "--dir", "study"]) == 1  # a row failed
    assert "2 of 3 rows done, 1 failed" in capsys.readouterr().out
    (old / "study" / "lock").unlink()  # which running made
    assert contents(old / "study") == before


def test_a_recipe_that_is_done_is_not_done_again(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert paper.main(["recipe.yaml", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {key: found[key] for key in RECORDED["paper"]} == RECORDED["paper"]
    assert not found["fresh"]
    assert not list((old / "paper").rglob("*.log"))  # no stage was started


def test_a_measured_machine_and_the_configuration_of_a_run_are_planned_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main(["decoder/config.yaml", "--cluster", "cluster.yaml", "--gpus", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parameters"]["total"] == RECORDED["inspect"]["parameters"]
    assert 0 < found["step_seconds"] < 3600
