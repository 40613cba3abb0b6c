"""The tool: any local text becomes prepared data; what cannot is one line and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from altup_moe.data.prepare import open_prepared
from altup_moe.data.tokenizer import load_tokenizer, train_bpe
from tests.command import command

main = command("prepare-data")

TEXTS = ["first text, with words\nand lines\n", "second: 日本語 é", "third <|endoftext|> text"]
ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = dict(os.environ)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield
    os.environ.clear()
    os.environ.update(before)


def _write(file: Path, texts: list[str], key: str = "text") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".txt":
        file.write_text("".join(texts), encoding="utf-8")
    elif file.suffix == ".jsonl":
        rows = [json.dumps({"id": number, key: text}, ensure_ascii=False) for number, text in enumerate(texts)]
        file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"id": range(len(texts)), key: pyarrow.array(texts, "string")}), file)
    return file


def _texts(prefix: Path) -> list[str]:
    prepared = open_prepared(prefix, 100_000)
    tokenizer = load_tokenizer(prepared.tokenizer_dir)
    return [tokenizer.decode(prepared.index.document(i).tolist()) for i in range(len(prepared.index))]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.parquet"])
def test_each_format(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    texts = TEXTS[:1] if name == "a.txt" else TEXTS
    _write(tmp_path / "in" / name, texts)
    assert main([str(tmp_path / "in" / name), str(tmp_path / "out" / "p"), "--vocab-size", "280"]) == 0
    assert _texts(tmp_path / "out" / "p") == texts
    printed = capsys.readouterr().out
    assert f"{len(texts)} documents" in printed
    assert f"{sum(len(t.encode()) for t in texts)} bytes" in printed
    assert "MB/s" in printed
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["p.bin", "p.idx", "p.json", "p.tokenizer"]


def test_a_directory_and_a_glob(tmp_path: Path) -> None:
    _write(tmp_path / "in" / "b.txt", TEXTS[:1])
    _write(tmp_path / "in" / "a" / "x.jsonl", TEXTS[1:2])
    _write(tmp_path / "in" / "c.parquet", TEXTS[2:])
    (tmp_path / "in" / "notes.json").write_text("{}")  # settings, not data
    (tmp_path / "in" / "image.png").write_bytes(b"\x89PNG")
    assert main([str(tmp_path / "in"), str(tmp_path / "p"), "--vocab-size", "280"]) == 0
    assert _texts(tmp_path / "p") == [TEXTS[1], TEXTS[0], TEXTS[2]]
    assert main([str(tmp_path / "in" / "[bc].*"), str(tmp_path / "q"), "--vocab-size", "280", "--workers", "1"]) == 0
    assert _texts(tmp_path / "q") == [TEXTS[0], TEXTS[2]]


def test_what_was_left_out_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [f"text {number}" if number % 3 else "" for number in range(100)]
    _write(tmp_path / "in" / "a.jsonl", texts)
    (tmp_path / "in" / "image.png").write_bytes(b"\x89PNG")
    assert main([str(tmp_path / "in"), str(tmp_path / "p"), "--vocab-size", "280"]) == 0
    printed = capsys.readouterr().out
    assert "66 documents" in printed
    assert f"left out, empty: 34 rows of {tmp_path / 'in' / 'a.jsonl'}, first row 0\n" in printed
    assert "left out, of no known format: image.png\n" in printed
    assert _texts(tmp_path / "p") == [text for text in texts if text]


def test_a_given_tokenizer_and_another_column(tmp_path: Path) -> None:
    file = _write(tmp_path / "a.jsonl", TEXTS, key="body")
    tokenizer = train_bpe(["other words"], 262, tmp_path / "bpe")
    arguments = [str(file), str(tmp_path / "p"), "--tokenizer", str(tmp_path / "bpe"), "--text-key", "body"]
    assert main(arguments) == 0
    assert open_prepared(tmp_path / "p", 262).manifest.tokenizer_sha256 == tokenizer.sha256
    assert _texts(tmp_path / "p") == TEXTS


def test_a_named_corpus(tmp_path: Path) -> None:
    assert main(["python-docs", str(tmp_path / "docs"), "--vocab-size", "300"]) == 0
    assert open_prepared(tmp_path / "docs", 300).manifest.documents > 70


def _fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("altup-moe: error: ")
    assert error.count("\n") == 1
    return error


def test_what_cannot_be_prepared_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out" / "p"
    good = _write(tmp_path / "in" / "good.txt", TEXTS)
    empty = _write(tmp_path / "in" / "empty.txt", [])
    assert f"{empty} at byte 0: is empty" in _fails(capsys, tmp_path / "in", out)
    rows = _write(tmp_path / "rows.jsonl", TEXTS)
    assert f"{rows} at byte 0: row 0 has no column 'body'; it has id, text" in _fails(
        capsys, rows, out, "--text-key", "body"
    )
    assert "row 0 column 'id' is int, not text" in _fails(capsys, rows, out, "--text-key", "id")
    none = _write(tmp_path / "none.parquet", [])
    assert f"{none}: has no rows" in _fails(capsys, none, out)
    blank = _write(tmp_path / "blank.parquet", ["", ""])
    assert f"{blank}: has no text" in _fails(capsys, blank, out)

    later = tmp_path / "later.jsonl"
    later.write_text('{"text": "é"}\n\n{"text": null}\n', encoding="utf-8")
    assert f"{later} at byte 16: row 1 column 'text' is empty" in _fails(capsys, later, out)
    later.write_text('{"text": "é"}\n{"text": "b" "c"}\n', encoding="utf-8")
    assert f"{later} at byte 28: cannot be read after 1 rows" in _fails(capsys, later, out)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("two\nligne à\n".encode("latin-1"))
    assert f"{latin} at byte 10: cannot be read after 0 rows" in _fails(capsys, latin, out)
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 and no more")
    assert f"{broken}: cannot be read after 0 rows" in _fails(capsys, broken, out)

    (tmp_path / "nothing").mkdir()
    assert "holds no file of a known format" in _fails(capsys, tmp_path / "nothing", out)
    assert "no such file" in _fails(capsys, tmp_path / "missing.txt", out)
    assert "no such file" in _fails(capsys, tmp_path / "*.none", out)
    (tmp_path / "a.docx").write_bytes(b"x")
    assert "unknown format '.docx'" in _fails(capsys, tmp_path / "a.docx", out)
    assert "--sentinels=5" in _fails(capsys, good, out, "--tokenizer", tmp_path, "--sentinels", 5)
    assert "--sentinels=0" in _fails(capsys, good, out, "--sentinels", 0)
    assert "--vocab-size=100" in _fails(capsys, good, out, "--vocab-size", 100)
    assert "--vocab-size=0" in _fails(capsys, good, out, "--vocab-size", 0)
    assert "--vocab-size=9999" in _fails(capsys, good, out, "--vocab-size", "9" * 30)
    assert "--workers=100000" in _fails(capsys, good, out, "--workers", 100000)
    assert "--workers=0" in _fails(capsys, good, out, "--workers", 0)
    assert "--vocab-size=300" in _fails(capsys, good, out, "--vocab-size", 300, "--tokenizer", tmp_path)
    assert "no such tokenizer" in _fails(capsys, good, out, "--tokenizer", tmp_path / "missing")
    assert list((tmp_path / "out").iterdir()) == []


def test_existing_output_is_kept_unless_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = _write(tmp_path / "a.jsonl", TEXTS)
    assert main([str(file), str(tmp_path / "p"), "--vocab-size", "280"]) == 0
    _write(file, TEXTS[:1])
    assert "exists already" in _fails(capsys, file, tmp_path / "p", "--vocab-size", "280")
    assert _texts(tmp_path / "p") == TEXTS
    assert main([str(file), str(tmp_path / "p"), "--vocab-size", "280", "--overwrite"]) == 0
    assert _texts(tmp_path / "p") == TEXTS[:1]


def test_nothing_is_written_elsewhere(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    file = _write(tmp_path / "in" / "a.jsonl", TEXTS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "XDG_"))}
    environment |= {"HOME": str(home), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    for source, out, code in ((str(file), "p", 0), ("nobody/nothing", "q", 2)):
        command = [sys.executable, str(ROOT / "tools" / "prepare_data.py"), source, str(tmp_path / "out" / out)]
        done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
    assert "nobody/nothing: no such file, and no dataset that can be read" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(home.rglob("*")) == []
    assert [f.name for f in (tmp_path / "in").iterdir()] == ["a.jsonl"]
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["p.bin", "p.idx", "p.json", "p.tokenizer"]
