"""The token file format: Megatron reads what we write, and every kind of damage is a named error."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from altup_moe.config import DataError
from altup_moe.data.indexed import read_index, scan_tokens, token_dtype, verify_indexed, write_indexed

DOCUMENTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [0, 255]]
LENGTHS_AT = 34
POINTERS_AT = LENGTHS_AT + 4 * len(DOCUMENTS)
BOUNDARIES_AT = POINTERS_AT + 8 * len(DOCUMENTS)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(256, "uint16"), (65536, "uint16"), (65537, "int32")])
def test_megatron_reads_what_we_write(tmp_path: Path, vocab_size: int, dtype: str) -> None:
    documents = [*DOCUMENTS, [vocab_size - 1]]
    written = write_indexed(tmp_path / "a.b", documents, vocab_size)
    theirs = IndexedDataset(str(tmp_path / "a.b"), mmap=True)
    assert theirs.index.dtype == np.dtype(dtype) == written.dtype == token_dtype(vocab_size)
    assert len(theirs) == len(written) == len(documents)
    assert written.tokens == 12
    np.testing.assert_array_equal(theirs.document_indices, np.arange(len(documents) + 1))
    for number, document in enumerate(documents):
        np.testing.assert_array_equal(theirs[number], document)
        np.testing.assert_array_equal(written.document(number), document)


def test_we_read_what_megatron_writes(tmp_path: Path) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=np.uint16)
    for document in DOCUMENTS:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(str(tmp_path / "m.idx"))
    ours = verify_indexed(tmp_path / "m", 256)
    assert [ours.document(i).tolist() for i in range(len(ours))] == DOCUMENTS
    write_indexed(tmp_path / "w", DOCUMENTS, 256)
    assert (tmp_path / "w.bin").read_bytes() == (tmp_path / "m.bin").read_bytes()
    assert (tmp_path / "w.idx").read_bytes() == (tmp_path / "m.idx").read_bytes()


def _put(at: int, value: bytes) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:at] + value + raw[at + len(value) :]


@pytest.mark.parametrize(
    ("suffix", "damage", "problem", "offset"),
    [
        (".idx", _put(0, b"X"), "magic", 0),
        (".idx", lambda raw: b"", "magic", 0),
        (".idx", lambda raw: raw[:20], "ends inside its header", 20),
        (".idx", _put(9, struct.pack("<Q", 2)), "version 2", 9),
        (".idx", _put(17, b"\x05"), "dtype code 5", 17),
        (".idx", _put(18, struct.pack("<Q", 0)), "empty", 18),
        (".idx", _put(18, struct.pack("<Q", 2**60)), "boundaries", 26),
        (".idx", _put(26, struct.pack("<Q", 3)), "3 document boundaries", 26),
        (".idx", lambda raw: raw[:-1], "bytes, but 4 documents take", BOUNDARIES_AT + 39),
        (".idx", lambda raw: raw + b"\0", "bytes, but 4 documents take", BOUNDARIES_AT + 40),
        (".idx", _put(LENGTHS_AT + 4, struct.pack("<i", 0)), "document 1 has length 0", LENGTHS_AT + 4),
        (".idx", _put(LENGTHS_AT + 8, struct.pack("<i", -5)), "document 2 has length -5", LENGTHS_AT + 8),
        (".idx", _put(POINTERS_AT + 16, struct.pack("<q", 4)), "document 2 starts at byte 4", POINTERS_AT + 16),
        (".idx", _put(POINTERS_AT + 24, struct.pack("<q", 2**40)), "document 3 starts", POINTERS_AT + 24),
        (".idx", _put(BOUNDARIES_AT + 8, struct.pack("<q", 2)), "boundary 1 is 2", BOUNDARIES_AT + 8),
        (".bin", lambda raw: raw[:-2], "20 bytes, but", 20),
        (".bin", lambda raw: raw + b"\0\0", "24 bytes, but", 22),
        (".bin", _put(12, struct.pack("<H", 256)), "token id 256 is outside the vocabulary of 256", 12),
    ],
)
def test_damage_is_named(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes], problem: str, offset: int
) -> None:
    write_indexed(tmp_path / "d", DOCUMENTS, 256)
    file = tmp_path / f"d{suffix}"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=problem) as caught:
        verify_indexed(tmp_path / "d", 256)
    assert caught.value.file == str(file)
    assert caught.value.offset == offset
    assert str(file) in str(caught.value)
    assert f"at byte {offset}" in str(caught.value)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_missing_half_is_named(tmp_path: Path, suffix: str) -> None:
    write_indexed(tmp_path / "d", DOCUMENTS, 256)
    (tmp_path / f"d{suffix}").unlink()
    with pytest.raises(DataError, match="no such file") as caught:
        read_index(tmp_path / "d")
    assert caught.value.file.endswith(suffix)


def test_negative_int32_ids_are_out_of_range(tmp_path: Path) -> None:
    indexed = write_indexed(tmp_path / "d", [[7, 70000, 8]], 80000)
    raw = bytearray((tmp_path / "d.bin").read_bytes())
    raw[4:8] = struct.pack("<i", -1)
    (tmp_path / "d.bin").write_bytes(raw)
    with pytest.raises(DataError, match="token id -1") as caught:
        scan_tokens(indexed, 80000)
    assert caught.value.offset == 4


@pytest.mark.parametrize(
    ("documents", "problem", "offset"),
    [
        ([[1, 2], [3, 256]], "token id 256", 6),
        ([[1, 2], [-1]], "token id -1", 4),
        ([[1], []], "document 1 has 0 tokens", 2),
        ([], "no documents", None),
    ],
)
def test_a_failed_write_changes_nothing(
    tmp_path: Path, documents: list[list[int]], problem: str, offset: int | None
) -> None:
    write_indexed(tmp_path / "d", DOCUMENTS, 256)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(DataError, match=problem) as caught:
        write_indexed(tmp_path / "d", documents, 256, overwrite=True)
    assert caught.value.offset == offset
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_replacing_must_be_asked_for(tmp_path: Path) -> None:
    write_indexed(tmp_path / "d", DOCUMENTS, 256)
    with pytest.raises(DataError, match="exists already"):
        write_indexed(tmp_path / "d", [[9]], 256)
    assert read_index(tmp_path / "d").tokens == 11
    assert write_indexed(tmp_path / "d", [[9]], 256, overwrite=True).tokens == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["d.bin", "d.idx"]
