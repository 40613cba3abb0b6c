"""Every command of `altup-moe` does its main job from the built wheel, in a fresh environment outside any checkout."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml

from altup_moe.cli import COMMANDS
from altup_moe.config.shipped import CONFIGS, shipped_files
from tests.package.inputs import write_inputs
from tests.package.installed import ROOT, Ended, Installed, build_wheel, install
from tests.unit.test_package import PROJECT

Check = Callable[[Path, str], Any]
"""(home, standard output) -> true if the command did its job."""


@dataclass(frozen=True)
class Step:
    """A command line, and what shows that it worked."""

    line: str
    worked: Check

    @property
    def words(self) -> list[str]:
        """The line's words; quotes hold none together."""
        return self.line.split()


TINY = "--model.num_layers 2 --model.hidden_size 32 --model.ffn_hidden_size 48 --model.num_attention_heads 2"
TINY += " --model.num_query_groups 2 --model.seq_length 16 --model.vocab_size 320 --data.corpus data/tiny"
TINY += " --train.steps 2 --train.micro_batch_size 2 --train.global_batch_size 4 --train.eval_samples 4"
TINY += " --moe.ffn_hidden_size 48"
ALONE = f"{TINY} --parallel.expert 1 --optim.warmup_steps 1"

DENSE = "--moe.num_experts 0 --altup.width 1"

SMALLEST = "--widths 2 --exponents 10 --dtypes fp32 --threads 1 --kernels torch --rivals false --repeats 1"


def lines_of(file: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def trained(run: str) -> Check:
    """Two steps of a run, with finite losses, and a checkpoint."""

    def worked(home: Path, out: str) -> bool:
        steps = [line for line in lines_of(home / run / "metrics.jsonl") if "loss" in line]
        finite = all(math.isfinite(line["loss"]) for line in steps)
        return len(steps) == 2 and finite and any((home / run / "checkpoints").iterdir())

    return worked


def holds(*files: str) -> Check:
    """Files exist, and are not empty."""
    return lambda home, out: all((home / file).stat().st_size > 0 for file in files)


def says(*words: str) -> Check:
    """Words are printed."""
    return lambda home, out: all(word in out for word in words)


QUICK = [
    Step("configs", lambda home, out: all(f"  {file.name} " in out for file in shipped_files())),
    Step("configs quickstart mine.yaml", lambda h, o: (h / "mine.yaml").read_text() == quickstart("mine")),
    Step("prepare-data text.txt data/tiny --vocab-size 300", holds("data/tiny.bin", "data/tiny.idx", "data/tiny.json")),
    Step(f"train quickstart {ALONE} --log.run_dir runs/tiny", trained("runs/tiny")),
    Step(f"train mine.yaml {ALONE} {DENSE} --log.run_dir runs/dense", trained("runs/dense")),
    Step("evaluate runs/tiny --json", lambda home, out: math.isfinite(json.loads(out)["loss"])),
    Step("generate runs/tiny --prompt cat --max-new-tokens 4", lambda home, out: len(out.strip()) > 3),
    Step("inspect runs/tiny --verify", says("model.norm.weight", "mlp.experts.0-3")),
    Step("reshard runs/tiny runs/resharded --expert 2 --verify", holds("runs/resharded/config.yaml")),
    Step("inspect runs/tiny --diff runs/resharded", lambda home, out: True),
    Step("convert export runs/dense hub --plain", holds("hub/config.json", "hub/model.safetensors")),
    Step("convert import hub runs/imported", holds("runs/imported/config.yaml")),
    Step("inspect runs/imported --json", lambda home, out: json.loads(out)),
    Step("grow runs/dense runs/grown --altup.width 2", holds("runs/grown/config.yaml")),
    Step("plan altup_k4_gpu --cluster h100x8", says("GiB")),
    Step("plan published", says("Mixtral 8x22B")),
    Step("launch slurm --print --nodes 2 -- altup-moe train quickstart", says("#SBATCH", "altup-moe train quickstart")),
    Step(f"bench mixing {SMALLEST} --json", lambda home, out: json.loads(out)),
    Step("show runs/tiny runs/dense", holds("runs/tiny/comparison.html")),
    Step("study report study", holds("study/report/report.html")),
]
"""Run in children of one process."""
PROCESSES = [
    Step(
        f"launch torchrun --ranks-per-node 2 -- altup-moe train quickstart {TINY} --log.run_dir runs/two",
        trained("runs/two"),
    ),
]
"""Run as programs of their own, since they start others."""
LONG = [
    [Step("doctor --json", lambda home, out: json.loads(out))],
    [
        Step("study run study.yaml --dir study_run", lambda h, o: len(lines_of(h / "study_run/rows.jsonl")) == 2),
        Step("study status study_run", says("2")),
        Step("study report study_run", holds("study_run/report/report.html")),
    ],
    [Step("recipe recipe.yaml --run_dir runs/recipe", holds("runs/recipe/results.json"))],
]


def quickstart(name: str = "quickstart") -> str:
    """The shipped file, as the checkout has it, or as a copy of another name."""
    text = (CONFIGS / "quickstart.yaml").read_text(encoding="utf-8")
    return text.replace("run_dir: runs/quickstart\n", f"run_dir: runs/{name}\n")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment, and small inputs in its home directory."""
    directory = tmp_path_factory.mktemp("wheel")
    found = install(build_wheel(directory / "dist"), directory)
    write_inputs(found.home)
    return found


def check(installed: Installed, steps: list[Step], ended: list[Ended]) -> None:
    """Every command line ended well and did its job; all that did not are named at once."""
    problems = []
    for step, one in zip(steps, ended, strict=True):
        try:
            worked = one.code == 0 and step.worked(installed.home, one.out)
        except (OSError, ValueError, KeyError) as error:
            worked, one = False, Ended(one.code, one.out, f"{one.err}\n{error!r}")
        if not worked:
            problems.append(f"altup-moe {step.line}\n  exit code {one.code}\n{one.out[-1500:]}\n{one.err[-1500:]}")
    assert not problems, "\n".join(problems)


def test_every_command_of_the_help_is_tried_here() -> None:
    assert {step.words[0] for step in (*QUICK, *PROCESSES, *chain(*LONG))} == set(COMMANDS)


@pytest.mark.slow
def test_the_environment_has_the_wheel_and_no_checkout(installed: Installed) -> None:
    code = "import altup_moe, json, sys; print(json.dumps([altup_moe.__file__, *sys.path]))"
    file, *path = json.loads(installed.run(installed.python, "-I", "-c", code).out)
    assert Path(file).is_relative_to(installed.python.parents[1])
    assert not any(entry and Path(entry).resolve() == ROOT for entry in path)
    assert not any((parent / "pyproject.toml").exists() for parent in installed.home.parents)
    version = installed.run(installed.command, "--version")
    assert (version.code, version.out) == (0, f"altup-moe {PROJECT['version']}\n")


@pytest.mark.slow
def test_commands(installed: Installed) -> None:
    check(installed, QUICK, installed.altup_moe([step.words for step in QUICK]))
    check(installed, PROCESSES, [installed.run(installed.command, *step.words) for step in PROCESSES])


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("steps", LONG, ids=lambda steps: steps[0].words[0])
def test_commands_that_take_longer(installed: Installed, steps: list[Step]) -> None:
    check(installed, steps, [installed.run(installed.command, *step.words, timeout=250) for step in steps])


@pytest.mark.slow
def test_the_wheel_holds_what_the_checkout_has(installed: Installed) -> None:
    """Every module and every shipped file; results of studies and tests stay outside."""
    (package,) = installed.python.parents[1].glob("lib/python*/site-packages/altup_moe")
    there = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    modules = {p.relative_to(ROOT / "altup_moe").as_posix() for p in (ROOT / "altup_moe").rglob("*") if p.is_file()}
    shipped = {f"configs/{p.relative_to(CONFIGS).as_posix()}" for p in CONFIGS.rglob("*") if p.is_file()}
    wanted = modules | {file for file in shipped if "study/results" not in file}
    assert there == {file for file in wanted if "__pycache__" not in file}


def test_the_inputs_are_read_by_the_loaders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from altup_moe.recipe.recipe import load_recipe
    from altup_moe.study.read_study import load_study

    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    assert len(load_study("study.yaml").rows) == 2
    assert load_recipe("recipe.yaml").seeds == (3,)
    assert yaml.safe_load(quickstart())["log"]["run_dir"] == "runs/quickstart"
