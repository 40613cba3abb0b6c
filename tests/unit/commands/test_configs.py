"""`altup-moe configs`: lists what is shipped, copies one file, prints the schema."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from altup_moe.commands.configs import main
from altup_moe.config import UserError
from altup_moe.config.load import load_config
from altup_moe.config.shipped import CONFIGS, SCHEMA_FILE, shipped_files


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_list_has_every_file_below_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 110 for line in lines)
    uses = {}
    for line in lines:
        if line.startswith(("configuration: ", "recipe: ", "study: ", "cluster: ")):
            use = line.partition(": ")[2]
        elif line.startswith("  ") and line[2] != " ":
            name, summary = line.split(maxsplit=1)
            uses[name] = use.replace("NAME", name)
            assert summary
    assert uses == {file.name: file.use for file in shipped_files()}


def test_the_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--json"]) == 0
    (one,) = [line for line in map(json.loads, capsys.readouterr().out.splitlines()) if line["name"] == "quickstart"]
    assert one["kind"] == "configuration"
    assert one["path"] == str(CONFIGS / "quickstart.yaml")
    assert one["use"] == "altup-moe train quickstart"


def test_a_copy_is_the_file_and_replaces_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = (CONFIGS / "quickstart.yaml").read_bytes()
    assert main(["quickstart"]) == 0
    assert capsys.readouterr().out == "quickstart.yaml\n"
    assert Path("quickstart.yaml").read_bytes() == wanted
    Path("quickstart.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"^quickstart\.yaml: exists; .*--overwrite"):
        main(["quickstart"])
    assert Path("quickstart.yaml").read_text() == "mine"
    assert main(["quickstart", "--overwrite"]) == 0
    assert Path("quickstart.yaml").read_bytes() == wanted
    Path("folder").mkdir()
    assert main(["h100x8.yaml", "folder"]) == 0
    assert Path("folder/h100x8.yaml").read_bytes() == (CONFIGS / "clusters" / "h100x8.yaml").read_bytes()


@pytest.mark.parametrize("file", ["mine.yaml", "a run: the first, #1.yml", "folder/naïve"])
def test_a_copy_of_another_name_has_a_run_directory_of_its_own(file: str) -> None:
    Path("folder").mkdir()
    assert main(["dense", file]) == 0
    copy = load_config(file)
    original = load_config(CONFIGS / "dense.yaml")
    assert copy.log.run_dir == f"runs/{Path(file).stem}"
    assert replace(copy, log=original.log) == original


def test_so_has_a_copy_of_a_recipe() -> None:
    assert main(["paper_tiny", "mine.yaml"]) == 0
    original = (CONFIGS / "paper_tiny.yaml").read_text()
    assert Path("mine.yaml").read_text() == original.replace("run_dir: runs/paper_tiny\n", "run_dir: runs/mine\n")
    assert "run_dir: runs/paper_tiny\n" in original


WRONG = [
    (["quikstart"], "^quikstart: no shipped file; nearest is quickstart"),
    (["dense", "nowhere/dense.yaml"], r"^nowhere/dense\.yaml: No such file or directory"),
    (["dense", "--schema"], "^dense: one schema holds for all files"),
    (["--scheme"], "^--scheme: unknown option; nearest is --schema"),
]


@pytest.mark.parametrize(("words", "says"), WRONG)
def test_a_mistake_is_one_line(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        main(words)
    assert list(Path().iterdir()) == []


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--schema"]) == 0
    assert capsys.readouterr().out == (CONFIGS / SCHEMA_FILE).read_text(encoding="utf-8")


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, altup_moe.commands.configs as c\nfor a in ([], ['--schema']): c.main(a)\nprint()\n"
    code += "print({'torch', 'transformers', 'megatron', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
