"""What libraries warn of does not hide what a command says: nothing of a good run, and otherwise a few lines."""

from __future__ import annotations

import importlib
import json
import sys
import types
import warnings
from pathlib import Path

import pytest

from altup_moe.cli import main
from altup_moe.config.library_warnings import KNOWN, SHOWN, VARIABLE


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID", VARIABLE):
        monkeypatch.delenv(name, raising=False)


def warns(words: list[str]) -> int:
    for text in ("one\ntwo", "one\ntwo", "three", "four", "five", "six"):
        warnings.warn(text, RuntimeWarning, stacklevel=1)
    for known in KNOWN:
        module = f"{known.module.replace(chr(92), '')}core"
        text = known.message.replace(chr(92), "") or "known"
        warnings.warn_explicit(text, known.category, "megatron.py", 1, module=module)
    return 0


@pytest.fixture
def warning_command(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("evaluate")
    module.main = warns  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "altup_moe.commands.evaluate", module)


@pytest.mark.usefixtures("warning_command")
def test_a_few_are_lines_and_the_rest_is_counted(capfd: pytest.CaptureFixture[str]) -> None:
    before = (list(warnings.filters), warnings.showwarning)
    assert main(["evaluate"]) == 0
    *shown, last = capfd.readouterr().err.splitlines()
    assert len(shown) == SHOWN
    assert shown[0].startswith("altup-moe: warning: one two (RuntimeWarning, ")
    assert last == "altup-moe: 2 further warnings of libraries; ALTUP_MOE_WARNINGS=all shows them"
    assert (list(warnings.filters), warnings.showwarning) == before


@pytest.mark.parametrize("module", ["altup_moe.plan.calibrate.jobs", "altup_moe.study.worker_main"])
def test_so_it_is_in_ranks_that_other_commands_start(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    entry = importlib.import_module(module)
    if module.endswith("jobs"):
        monkeypatch.setitem(entry.JOBS, "made up", lambda argument, directory: warns([]))
        entry.main("made up", "", str(tmp_path))
    else:
        monkeypatch.setattr(entry, "die_with_parent", lambda parent: None)
        monkeypatch.setattr(entry, "_work", lambda kind, options, roots: lambda: warns([]))
        assert entry.main(["train", "{}", str(tmp_path)]) == 0
    assert len(capfd.readouterr().err.splitlines()) == SHOWN + 1


@pytest.mark.usefixtures("warning_command")
def test_other_ranks_are_silent(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["evaluate"]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("warning_command")
def test_all_are_shown_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "all")
    monkeypatch.setenv("RANK", "1")
    with pytest.warns(RuntimeWarning) as seen:
        assert main(["evaluate"]) == 0
    assert {"six", "known"} <= {str(each.message) for each in seen}


@pytest.mark.slow
def test_a_good_run_says_nothing_on_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Training, evaluation, generation, export and import, one after the other."""
    monkeypatch.chdir(tmp_path)
    model = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 2}
    sections = {
        "model": {**model, "num_query_groups": 2, "seq_length": 32, "vocab_size": 300},
        "altup": {"width": 1},
        "train": {"steps": 2, "micro_batch_size": 2, "global_batch_size": 4, "eval_samples": 2},
        "log": {"run_dir": "run"},
        "optim": {"warmup_steps": 1},
    }
    Path("run.yaml").write_text(json.dumps(sections))
    Path("held.txt").write_text("the import statement\n" * 30)
    for words in (
        ["train", "run.yaml"],
        ["evaluate", "run", "--corpus", "held.txt"],
        ["generate", "run", "--prompt", "The", "--max-new-tokens", "2"],
        ["convert", "export", "run", "exported", "--plain"],
        ["convert", "import", "exported", "imported"],
    ):
        code = main(words)
        out, err = capfd.readouterr()
        assert (code, err) == (0, ""), words
        if words[0] == "train":
            assert "stream: altup.width=1, the plain Transformer (without the key: 2)\n" in out
