"""Local files come out as they are: every byte of a text, every row, every compression; what does not is named."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet

from altup_moe.config import DataError
from altup_moe.data.pieces import LONGEST_WORD, pieces
from altup_moe.data.sources import LeftOut, local_documents, local_files

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: bytes(pyarrow.compress(raw, codec="zstd", asbytes=True)),
}
STRINGS = ["2021-03-04", "2021-03-04T05:06:07Z", "12:30", "1e5", "true", "line\r\nend\r", "\ufeffmark", "a\u2028b", "é"]


def texts(file: Path, key: str = "text") -> list[str]:
    return [document.text for document in local_documents([file], key, LeftOut())]


@pytest.mark.parametrize("text", ["a\r\nb\rc\n", "one", "\n\n", " ", "tail\r", "日本\u0085\u2028語\x0b"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_a_text_file_is_its_bytes(text: str, mark: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(mark + text.encode())
    assert texts(tmp_path / "a.txt") == [text]


def test_strings_of_every_format_stay_strings(tmp_path: Path) -> None:
    """No string becomes a date, a number or another string."""
    rows = [{"text": text, "other": number} for number, text in enumerate(STRINGS)]
    lines = "".join(json.dumps(row) + "\r\n" for row in rows)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    (tmp_path / "b.ndjson").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    (tmp_path / "c.json").write_text(json.dumps(rows, indent=2), encoding="utf-8")
    (tmp_path / "d.json").write_text(lines, encoding="utf-8")
    parquet.write_table(pyarrow.table({"text": STRINGS, "other": range(len(STRINGS))}), tmp_path / "e.PARQUET")
    for name in ("a.jsonl", "b.ndjson", "c.json", "d.json", "e.PARQUET"):
        assert texts(tmp_path / name) == STRINGS, name


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_files_are_read_whole(suffix: str, tmp_path: Path) -> None:
    compress = COMPRESS[suffix]
    lines = [json.dumps({"text": f"{number} \r\n {number}"}).encode() + b"\n" for number in range(3000)]
    file = tmp_path / f"a.jsonl{suffix}"
    # Two members one after the other, as `cat a.gz b.gz` makes.
    file.write_bytes(compress(b"".join(lines[:1000])) + compress(b"".join(lines[1000:])))
    assert texts(file) == [f"{number} \r\n {number}" for number in range(3000)]
    (tmp_path / f"b.TXT{suffix.upper()}").write_bytes(compress(b"a\r\nb"))
    assert texts(tmp_path / f"b.TXT{suffix.upper()}") == ["a\r\nb"]
    file.write_bytes(compress(b"".join(lines))[:-9])
    with pytest.raises(DataError, match=r"cannot be read after \d+ rows"):
        texts(file)


def test_what_a_directory_holds_is_read_or_named(tmp_path: Path) -> None:
    content = {
        "a.jsonl": b'{"text": "a"}\n{"text": ""}\n{"text": "a2"}\n\n{"text": ""}\n',
        "b.jsonl.gz": gzip.compress(b'{"text": "b"}\n'),
        "c.ndjson": b'{"text": "c"}\n',
        "D.TXT": b"d",
        ".ipynb_checkpoints/a-checkpoint.jsonl": b'{"text": "hidden"}\n',
        ".hidden.txt": b"hidden",
        "notes.json": b"{}",
        "paper.pdf": b"%PDF",
        "table.parquet.gz": b"x",
    }
    for name, raw in content.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(raw)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "e.md").write_bytes(b"e")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "back").symlink_to(tmp_path / "in")
    left_out = LeftOut()
    files = local_files(str(tmp_path / "in"), left_out)
    found = [document.text for document in local_documents(files, "text", left_out)]
    assert found == ["d", "a", "a2", "b", "c", "e"]
    assert left_out.lines() == [
        "left out, hidden: .ipynb_checkpoints/, .hidden.txt",
        "left out, .json must be named: notes.json",
        "left out, of no known format: paper.pdf, table.parquet.gz",
        f"left out, empty: 2 rows of {tmp_path / 'in' / 'a.jsonl'}, first row 1",
    ]
    hidden = tmp_path / "in" / ".hidden.txt"
    assert local_files(str(hidden), left_out) == [hidden]  # named


def test_a_file_beside_its_compressed_copy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a"))
    with pytest.raises(DataError, match=r"a\.txt\.gz: is there twice: a\.txt"):
        local_files(str(tmp_path), LeftOut())
    assert len(local_files(str(tmp_path / "a*"), LeftOut())) == 2


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("a.jsonl", b'{"text": "a"}\n[1]\n', "at byte 14: row 1 is a JSON list, not an object"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "row 0 column 'text' has half of a surrogate pair at character 0"),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n{"text": "\xff"}\n', "at byte 27: cannot be read after 1 rows"),
        ("a.json", b'[{"text": "\xc3\xa9"},]', r"at byte 16: cannot be read"),
        ("a.json", b'{"text": "a"}\n{"text" "b"}', r"at byte 22: cannot be read after 1 rows"),
        ("a.txt", "ab".encode("utf-16"), "at byte 0: cannot be read after 0 rows"),
        ("a.txt.gz", b"no gzip", "cannot be read after 0 rows"),
        ("a.txt.zst", b"no zstd", "cannot be read after 0 rows"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, raw: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=says):
        texts(tmp_path / name)


@pytest.mark.parametrize("size", [0, 1, LONGEST_WORD - 1, LONGEST_WORD, LONGEST_WORD + 1, 5 * LONGEST_WORD, 10_000])
def test_only_long_words_are_cut_for_a_tokenizer(size: int) -> None:
    text = f"a few words\n {'x' * size} and {'yz' * size}"
    cut = list(pieces(text))
    assert "".join(cut) == text
    assert (len(cut) == 1) == (2 * size < LONGEST_WORD)
    assert max(len(word) for piece in cut for word in piece.split()) <= LONGEST_WORD
    assert list(pieces("")) == [""]
