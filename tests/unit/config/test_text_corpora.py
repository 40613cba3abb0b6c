"""Text given where tokens are expected, and tables: the message's command does what is missing."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import pytest

from altup_moe.cli import main
from altup_moe.config.load import from_dict
from altup_moe.config.text_corpora import prepare_hint, table_hint

SETTINGS = [
    ({"model": {"vocab_size": 512}}, "--vocab-size 512"),
    ({"data": {"objective": "span_corruption", "sentinels": 7}}, "--vocab-size 4096 --sentinels 7"),
    ({"model": {"arch": "t5"}}, "--vocab-size 4096 --sentinels 100"),
    ({"data": {"tokenizer": "my tokenizer"}}, "--tokenizer 'my tokenizer'"),
    ({"data": {"tokenizer": "t5", "add_special_tokens": True}}, "--tokenizer t5 --add-special-tokens"),
]


@pytest.mark.parametrize(("sections", "flags"), SETTINGS)
def test_the_preparation_that_a_configuration_needs(tmp_path: Path, sections: dict, flags: str) -> None:
    text = tmp_path / "held.jsonl.gz"
    text.touch()
    command = f"altup-moe prepare-data {text} {tmp_path}/held {flags}"
    assert prepare_hint(str(text), from_dict(sections)) == f"; type {command} and then --data.corpus {tmp_path}/held"


def test_a_directory_keeps_its_name(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    assert f"prepare-data {tmp_path}/texts {tmp_path}/texts_tokens --vocab-size 4096 and" in prepare_hint(
        f"{tmp_path}/texts", from_dict({})
    )
    assert prepare_hint(str(tmp_path / "nothing"), from_dict({})) == ""
    assert prepare_hint("", from_dict({})) == ""
    assert "prepare-data / /corpus_tokens --vocab-size" in prepare_hint("/", from_dict({}))
    assert f" . {Path.cwd().name}_tokens --vocab-size" in prepare_hint(".", from_dict({}))
    (tmp_path / "code.py").touch()
    assert prepare_hint(str(tmp_path / "code.py"), from_dict({})) == ""


def test_the_command_of_the_message_prepares_what_the_flag_names(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    Path("own.txt").write_text("the cat saw the dog and ran home\n" * 40)
    Path("run.yaml").write_text("model: {vocab_size: 300}\n")
    assert main(["train", "run.yaml", "--data.corpus", "own.txt"]) == 2
    said = capfd.readouterr().err
    assert said.startswith("altup-moe: error: data.corpus='own.txt': is text, not tokens yet; type altup-moe ")
    command, _, flag = said.partition("; type altup-moe ")[2].strip().partition(" and then ")
    assert main(command.split()) == 0
    assert flag == "--data.corpus own"
    assert Path("own.idx").is_file()
    assert json.loads(Path("own.json").read_text())["vocab_size"] <= 300


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".TSV", "\t")])
def test_the_command_for_a_table_writes_its_rows(tmp_path: Path, suffix: str, delimiter: str) -> None:
    rows = [{"text": 'a, "b"\nc\té', "n": "1"}, {"text": "x" * 200_000, "n": "2"}]
    table = tmp_path / f"a table{suffix}"
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, ["text", "n"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    command = table_hint(table).partition("names: ")[2]
    subprocess.run(command, shell=True, check=True, timeout=60)
    assert [json.loads(line) for line in (tmp_path / "a table.jsonl").read_text().splitlines()] == rows
    assert table_hint(tmp_path / "a.txt") == ""


def test_a_table_where_text_is_expected(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    Path("held.csv").write_text("text\nhello\n")
    Path("run.yaml").touch()
    Path("run/checkpoints/step_00000001").mkdir(parents=True)
    Path("run/config.yaml").touch()
    for words in (
        ["prepare-data", "held.csv", "held"],
        ["prepare-data", ".", "held"],
        ["evaluate", "run", "--corpus", "held.csv"],
        ["train", "run.yaml", "--data.corpus", "held.csv"],
    ):
        assert main(words) == 2
        err = capfd.readouterr().err
        assert err.count("\n") == 1
        assert err.endswith("csv.DictReader(sys.stdin)]' < held.csv > held.jsonl\n")
