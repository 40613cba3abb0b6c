"""Mistyped command lines: one line on standard error, exit code 2, the nearest right word in it, and no torch."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from altup_moe.cli import COMMANDS, main
from altup_moe.config.command import Group

ROOT = Path(__file__).parents[2]
RUN = str(ROOT / "tests" / "golden" / "before_restructuring" / "decoder")

MISTAKES: dict[str, tuple[list[str], str]] = {
    "wrong command": (["trian"], "trian: unknown command; nearest is train"),
    "wrong name of a door": (["preparedata"], "nearest is prepare-data"),
    "train, wrong key": (["train", "quickstart", "--train.stepz", "3"], "nearest is train.steps"),
    "train, a usual synonym": (["train", "quickstart", "--optim.lr", "1"], "nearest is optim.learning_rate"),
    "train, wrong flag": (["train", "quickstart", "--profle"], "--profle: unknown option; nearest is --profile"),
    "train, a flag without its dash": (
        ["train", "quickstart", "--dryrun"],
        "--dryrun: unknown option; nearest is --dry-run",
    ),
    "train, wrong value": (["train", "quickstart", "--train.steps", "many"], "train.steps='many': expects a whole"),
    "train, wrong file": (["train", "quikstart"], "quickstart"),
    "train, no file": (["train"], "as in altup-moe train quickstart"),
    "train, an empty word": (["train", ""], "as in altup-moe train quickstart"),
    "evaluate, an empty text": (["evaluate", RUN, "--corpus", ""], "--corpus='': there is no such file"),
    "generate, a number too large for a float": (
        ["generate", RUN, "--prompt", "x", "--seed", "9" * 400],
        "must lie in",
    ),
    "train, wrong section": (["train", "--help", "optimm"], "nearest is altup-moe train --help optim"),
    "evaluate, wrong flag": (["evaluate", RUN, "--sample", "3"], "--sample: unknown option; nearest is --samples"),
    "evaluate, no run": (["evaluate"], "RUN_DIR is missing, as in altup-moe evaluate runs/quickstart"),
    "evaluate, a file for a run": (["evaluate", str(ROOT / "README.md")], "is a file; a run is a directory"),
    "generate, no prompt": (["generate", RUN], "--prompt is missing, as in altup-moe generate"),
    "generate, wrong value": (["generate", RUN, "--prompt", "x", "--top_p", "2"], "--top-p=2.0: must lie in (0, 1]"),
    "evaluate, a text without its flag": (["evaluate", RUN, "held.txt"], "'held.txt': unexpected word; a text to"),
    "evaluate, the flag for it": (["evaluate", RUN, "held.txt"], "is given as --corpus held.txt"),
    "generate, a prompt without its flag": (["generate", RUN, "The miller"], "is given as --prompt 'The miller'"),
    "prepare-data, a glob without quotes": (["prepare-data", "a.txt", "b.txt", "c"], "one SOURCE: a glob in quotes"),
    "doctor, wrong flag": (["doctor", "--ports", "3"], "--ports: unknown option; nearest is --port"),
    "bench, wrong name": (["bench", "mixin"], "bench mixin: unknown command; nearest is bench mixing"),
    "bench, wrong value": (["bench", "step", "--widths", "3"], "--widths=3: expects one or more, each one of 1, 2, 4"),
    "show, wrong flag": (["show", RUN, "--outptu", "x"], "--outptu: unknown option; nearest is --output"),
    "study, wrong name": (["study", "rnu"], "study rnu: unknown command; nearest is study run"),
    "study run, wrong flag": (["study", "run", "quick_pareto", "--job", "2"], "nearest is --jobs"),
    "study report, no directory": (["study", "report"], "DIRECTORY is missing, as in altup-moe study report"),
    "study status, too many words": (["study", "status", "a", "b"], "'b': unexpected word"),
    "plan, wrong name": (["plan", "publishd"], "nearest is plan published"),
    "plan, wrong flag": (["plan", "quickstart", "--node", "2"], "--node: unknown option; nearest is --nodes"),
    "plan, wrong cluster": (["plan", "quickstart", "--cluster", "h100x9"], "h100x8"),
    "plan measure, wrong rate": (["plan", "measure", "--netlab", "fast"], "--netlab 'fast': a number with kbit, mbit"),
    "prepare-data, wrong flag": (["prepare-data", "a", "b", "--vocab", "9"], "nearest is --vocab-size"),
    "prepare-data, no prefix": (["prepare-data", "a.txt"], "OUT is missing, as in altup-moe prepare-data"),
    "convert, wrong name": (["convert", "imprt"], "convert imprt: unknown command; nearest is convert import"),
    "convert import, wrong flag": (
        ["convert", "import", "a", "b", "--seq-lenght", "3"],
        "--seq-lenght: unknown option; nearest is --seq-length",
    ),
    "convert import, wrong value": (
        ["convert", "import", "a", "b", "--precision", "fp16"],
        "--precision='fp16': expects one of fp32, bf16",
    ),
    "reshard, wrong flag": (["reshard", RUN, "x", "--tensors", "2"], "--tensors: unknown option; nearest is --tensor"),
    "reshard, a usual synonym": (["reshard", RUN, "x", "--tp", "2"], "--tp: unknown option; nearest is --tensor"),
    "reshard, no destination": (["reshard", RUN], "DESTINATION is missing, as in altup-moe reshard"),
    "inspect, wrong flag": (["inspect", RUN, "--verfy"], "--verfy: unknown option; nearest is --verify"),
    "grow, wrong key": (["grow", RUN, "x", "--altup.widht", "4"], "altup.widht=4: unknown key; nearest is altup.width"),
    "grow, no destination": (["grow", RUN], "as in altup-moe grow"),
    "grow, an empty destination": (["grow", RUN, ""], "as in altup-moe grow"),
    "recipe, wrong flag": (["recipe", "paper_tiny", "--job", "2"], "--job: unknown option; nearest is --jobs"),
    "launch, wrong name": (["launch", "torchrn"], "launch torchrn: unknown command; nearest is launch torchrun"),
    "launch torchrun, wrong flag": (
        ["launch", "torchrun", "--rank-per-node", "2", "--", "true"],
        "--rank-per-node: unknown option; nearest is --ranks-per-node",
    ),
    "launch torchrun, no dashes": (["launch", "torchrun", "true"], "'true': unexpected word; a command goes behind --"),
    "launch torchrun, half a command": (
        ["launch", "torchrun", "--", "train", "quickstart"],
        "command 'train': not found; type altup-moe train quickstart",
    ),
    "launch deepspeed, wrong value": (
        ["launch", "deepspeed", "--node_rank", "x", "--", "true"],
        "--node-rank='x': expects a whole number",
    ),
    "launch slurm, wrong flag": (["launch", "slurm", "--partitoin", "x"], "nearest is --partition"),
    "launch netlab, wrong rate": (["launch", "netlab", "--rate", "9", "--", "true"], "--rate '9': a number with kbit"),
    "configs, wrong name": (["configs", "quikstart"], "nearest is quickstart"),
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside the checkout, and no rank of a launcher."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("words", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistyped_command_line_is_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("altup-moe: error: ")
    assert says in err


def test_every_command_has_a_mistake_here() -> None:
    assert {words[0] for words, _ in MISTAKES.values()} >= set(COMMANDS)


LOADED = """
import json, sys
from altup_moe.cli import main
found = {}
for words in json.loads(sys.argv[1]):
    code = main(words)
    found[" ".join(words)] = code, sorted({"torch", "megatron", "transformers", "datasets"} & set(sys.modules))
print("\\n" + json.dumps(found))
"""


def python(code: str, *args: str) -> str:
    """The last line that a new interpreter prints."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_no_help_and_no_mistake_imports_torch() -> None:
    """One interpreter, a command after the other: what one imports, the rest would show."""
    helps = [["--help"], *([name, "--help"] for name in COMMANDS), ["train", "--help", "optim"]]
    lines = [*helps, *(words for words, _ in MISTAKES.values())]
    found = json.loads(python(LOADED, json.dumps(lines)))
    assert found == {" ".join(words): [0 if words in helps else 2, []] for words in lines}


def test_the_overview_imports_next_to_nothing() -> None:
    heavy = ["torch", "tyro", "numpy", "yaml", "rich"]
    code = (
        f"import sys; from altup_moe.cli import main; main(['--help']); print(sorted(set({heavy}) & set(sys.modules)))"
    )
    assert python(code) == "[]"


def pages() -> list[list[str]]:
    """Words of every page of help."""
    from importlib import import_module

    found: list[list[str]] = [[]]
    for name in COMMANDS:
        module = import_module(f"altup_moe.commands.{name.replace('-', '_')}")
        group = getattr(module.main, "__self__", None)
        parts = group.commands if isinstance(group, Group) else getattr(module, "PLAN_COMMANDS", {})
        found += [[name], *([name, part] for part in parts)]
    return found


@pytest.mark.parametrize("words", pages(), ids=" ".join)
def test_help_fits_a_screen_and_begins_with_an_example(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*words, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = lines[0] if lines[0].startswith("example: ") else lines[1]
    assert re.match(rf"(example: |  )altup-moe {' '.join(words)}", first)
    assert f"usage: altup-moe {' '.join(words)}" in "\n".join(lines)
    assert len(lines) <= (30 if not words else 40)


def test_help_of_one_option_says_all(capsys: pytest.CaptureFixture[str]) -> None:
    """The page has the first sentence, the option's own page the rest."""
    assert main(["launch", "slurm", "--help"]) == 0
    assert main(["train", "--help", "optim.decay_steps"]) == 0
    assert "null with constant" in " ".join(capsys.readouterr().out.split())
    assert main(["bench", "overlap", "--help", "widths"]) == 0
    assert "--widths 1|2|4|8 ..." in capsys.readouterr().out
    assert main(["bench", "overlap", "--help", "widht"]) == 2
    assert "nearest is altup-moe bench overlap --help width" in capsys.readouterr().err


def test_a_section_has_units_and_the_file_s_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "quickstart", "--help", "optim"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--optim.warmup-steps N Steps of linear warm-up." in text
    assert "--optim.schedule cosine|wsd|constant|inverse_sqrt" in text
