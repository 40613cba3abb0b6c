"""Safetensors files in bytes: what is written is read back, the library agrees, and what is malformed is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from altup_moe.checkpoint import shards
from altup_moe.checkpoint.header import header_bytes
from altup_moe.checkpoint.manifest import ITEM_BYTES, StoredFile
from altup_moe.checkpoint.shards import ShardReader, ShardWriter, item_type
from altup_moe.checkpoint.slices import full_slice, slice_shape
from altup_moe.checkpoint.tensors import TORCH_DTYPES, as_tensor, items
from altup_moe.config import DataError
from altup_moe.parallel.parameter_mapping import TensorSlice
from tests.processes import open_below

SHAPES: list[tuple[int, ...]] = [(), (0,), (5,), (3, 0, 2), (3, 4), (2, 3, 4)]


def draw(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    kind = item_type(dtype)
    top = 1 if dtype == "BOOL" else np.iinfo(kind).max
    return np.random.default_rng(seed).integers(0, top, shape, kind, endpoint=True)


def write(path: Path, values: dict[str, tuple[str, np.ndarray]]) -> StoredFile:
    writer = ShardWriter(path, [(key, dtype, array.shape) for key, (dtype, array) in values.items()])
    for _, array in values.values():
        writer.write(array)
    return writer.close()


@pytest.fixture
def everything() -> dict[str, tuple[str, np.ndarray]]:
    """A tensor of every dtype and shape."""
    return {f"{dtype}/{shape}": (dtype, draw(dtype, shape)) for dtype in ITEM_BYTES for shape in SHAPES}


def test_round_trip_and_hash(tmp_path: Path, everything: dict[str, tuple[str, np.ndarray]]) -> None:
    path = tmp_path / "a.safetensors"
    stored = write(path, everything)
    raw = path.read_bytes()
    assert stored == StoredFile(len(raw), hashlib.sha256(raw).hexdigest())
    assert int.from_bytes(raw[:8], "little") % 8 == 0, "items are aligned"
    with ShardReader(path) as reader:
        assert list(reader.entries) == list(everything)
        assert reader.sha256() == stored.sha256
        for key, (dtype, array) in everything.items():
            assert (reader.entries[key].dtype, reader.entries[key].bytes) == (dtype, array.nbytes)
            assert np.array_equal(reader.read(key, full_slice(array.shape)), array)


def test_the_library_reads_ours(tmp_path: Path, everything: dict[str, tuple[str, np.ndarray]]) -> None:
    write(tmp_path / "a.safetensors", everything)
    loaded = load_file(tmp_path / "a.safetensors")
    assert loaded.keys() == everything.keys()
    for key, (dtype, array) in everything.items():
        assert loaded[key].dtype == TORCH_DTYPES[dtype]
        assert np.array_equal(items(loaded[key]), array)


def test_we_read_the_librarys(tmp_path: Path, everything: dict[str, tuple[str, np.ndarray]]) -> None:
    tensors = {key: as_tensor(array, dtype) for key, (dtype, array) in everything.items()}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"format": "pt"})
    with ShardReader(tmp_path / "a.safetensors") as reader:
        assert reader.entries.keys() == everything.keys()
        for key, (_, array) in everything.items():
            assert np.array_equal(reader.read(key, full_slice(array.shape)), array)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_slice_into_any_array(tmp_path: Path, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 6), max_size=4).map(tuple))
    ends = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in shape]
    tensor_slice: TensorSlice = tuple((a, b) for a, b in ends)
    dtype = data.draw(st.sampled_from(["U8", "BF16", "F32", "I64"]))
    values = draw(dtype, shape)
    path = tmp_path / "a.safetensors"
    path.unlink(missing_ok=True)
    write(path, {"before": ("U8", draw("U8", (3,))), "x": (dtype, values)})
    order = data.draw(st.permutations(range(len(shape))))
    # An array whose memory lies in another order of dimensions, and with gaps.
    sizes = [2 * slice_shape(tensor_slice)[d] for d in order]
    out = np.zeros(sizes, item_type(dtype)).transpose(np.argsort(order)) if shape else np.zeros((), item_type(dtype))
    out = out[tuple(slice(None, None, 2) for _ in shape)] if shape else out
    with pytest.MonkeyPatch.context() as patch, ShardReader(path) as reader:
        patch.setattr(shards, "READ_BYTES", data.draw(st.sampled_from([1, 16, 1 << 24])))
        reader.read_into("x", tensor_slice, out)
        assert np.array_equal(out, values[tuple(slice(a, b) for a, b in tensor_slice)])
        assert np.array_equal(reader.read("x", tensor_slice), out)


@pytest.mark.parametrize(
    ("tensor_slice", "out"),
    [
        (((0, 4), (0, 4)), np.zeros((4, 4), np.uint32)),
        (((0, 3), (2, 1)), np.zeros((3, 0), np.uint32)),
        (((0, 3),), np.zeros(3, np.uint32)),
        (((0, 3), (0, 4)), np.zeros((3, 3), np.uint32)),
        (((0, 3), (0, 4)), np.zeros((3, 4), np.uint16)),
    ],
)
def test_a_slice_or_an_array_that_does_not_fit(tmp_path: Path, tensor_slice: TensorSlice, out: np.ndarray) -> None:
    write(tmp_path / "a.safetensors", {"x": ("F32", draw("F32", (3, 4)))})
    with ShardReader(tmp_path / "a.safetensors") as reader, pytest.raises(ValueError, match="x"):
        reader.read_into("x", tensor_slice, out)


def test_a_file_cut_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write(path, {"x": ("F32", draw("F32", (3, 4)))})
    with ShardReader(path) as reader:
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(DataError, match="ends before its tensors do"):
            reader.read("x", ((0, 3), (0, 4)))


def test_the_writer_is_not_misused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x twice"):
        ShardWriter(tmp_path / "twice", [("x", "U8", (2,)), ("x", "U8", (2,))])
    assert not (tmp_path / "twice").exists()
    writer = ShardWriter(tmp_path / "a", [("x", "U8", (2,))])
    with pytest.raises(AssertionError):
        writer.write(np.zeros(3, np.uint8))
    with pytest.raises(AssertionError):
        writer.close()
    writer.write(np.zeros(2, np.uint8))
    with pytest.raises(AssertionError):
        writer.write(np.zeros(2, np.uint8))
    assert writer.close().size == (tmp_path / "a").stat().st_size
    with pytest.raises(FileExistsError):
        ShardWriter(tmp_path / "a", [])


def framed(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one(**changes: object) -> dict[str, object]:
    return {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


EIGHT = bytes(8)
DEEP = b"[" * 100_000 + b"]" * 100_000
MALFORMED: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "header would have 0 bytes"),
    "half a length": (b"\x10\x00\x00", "header would have 16 bytes"),
    "no header": (bytes(8), "header would have 0 bytes"),
    "huge length": (framed(one(), EIGHT, (1 << 64) - 1), "header would have"),
    "length of the whole file and more": (framed(one(), EIGHT, 500), "header would have"),
    "longer than allowed": (framed(one(), EIGHT, 100_000_001), "header would have"),
    "length a byte short": (framed(one(), EIGHT, len(json.dumps(one())) - 1), "is no safetensors file"),
    "length a byte long": (framed(one(), EIGHT, len(json.dumps(one())) + 1), "is no safetensors file"),
    "not JSON": (framed(b"{nonsense}"), "is no safetensors file"),
    "not UTF-8": (framed(b'{"\xff": 1}'), "utf-8"),
    "UTF-16": (framed(json.dumps({}).encode("utf-16")), "utf-8"),
    "nested deeply": (framed(DEEP), "nested too deeply"),
    "a list": (framed([]), "no JSON object"),
    "a key twice": (framed(b'{"x": 1, "x": 2}'), "'x' stands twice"),
    "NaN": (framed(b'{"x": NaN}'), "NaN is no JSON number"),
    "infinite": (framed(b'{"x": 1e999}'), "too large a number"),
    "a number of 5000 digits": (framed(b'{"x": 1' + b"0" * 5000 + b"}"), "is no safetensors file"),
    "entry is a number": (framed({"x": 3}), "is not dtype, shape and data_offsets"),
    "entry lacks its shape": (framed({"x": {"dtype": "F32", "data_offsets": [0, 8]}}, EIGHT), "is not dtype, shape"),
    "entry has more": (framed(one(more=1), EIGHT), "is not dtype, shape"),
    "unknown dtype": (framed(one(dtype="F8_E4M3"), EIGHT), "has the dtype 'F8_E4M3'"),
    "dtype is a list": (framed(one(dtype=["F32"]), EIGHT), "has the dtype"),
    "dtype of another size": (framed(one(dtype="F64"), EIGHT), "does not follow"),
    "negative size": (framed(one(shape=[-2]), EIGHT), "has the shape [-2]"),
    "two negative sizes": (framed(one(shape=[-2, -1]), EIGHT), "has the shape"),
    "fraction of a size": (framed(one(shape=[2.0]), EIGHT), "has the shape [2.0]"),
    "size is true": (framed(one(shape=[True, 2]), EIGHT), "has the shape"),
    "size beyond 2^62": (framed(one(shape=[1 << 63]), EIGHT), "has the shape"),
    "sizes that multiply to 2^120": (framed(one(shape=[1 << 60, 1 << 60]), EIGHT), "does not follow"),
    "shape is text": (framed(one(shape="2"), EIGHT), "has the shape 2"),
    "fraction of an offset": (framed(one(data_offsets=[0.0, 8.0]), EIGHT), "has the offsets"),
    "negative offset": (framed(one(data_offsets=[-8, 0]), EIGHT), "has the offsets"),
    "one offset": (framed(one(data_offsets=[0]), EIGHT), "has the offsets"),
    "three offsets": (framed(one(data_offsets=[0, 8, 8]), EIGHT), "has the offsets"),
    "offsets turned round": (framed(one(data_offsets=[8, 0]), EIGHT), "does not follow"),
    "begins late": (framed(one(data_offsets=[4, 12]), bytes(12)), "does not follow"),
    "ends early": (framed(one(data_offsets=[0, 4]), EIGHT), "does not follow"),
    "beyond the end": (framed(one(shape=[3], data_offsets=[0, 12]), EIGHT), "end at byte"),
    "items missing": (framed(one(), bytes(7)), "end at byte"),
    "items too many": (framed(one(), bytes(9)), "end at byte"),
    "overlapping": (framed({**one(), "y": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, EIGHT), "y does"),
    "a gap": (framed({**one(), "y": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}}, bytes(16)), "y does"),
    "the same bytes twice": (framed({**one(), "y": one()["x"]}, EIGHT), "does not follow"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(tmp_path: Path, name: str) -> None:
    raw, says = MALFORMED[name]
    path = tmp_path / "a.safetensors"
    path.write_bytes(raw)
    with pytest.raises(DataError) as caught:
        ShardReader(path)
    assert says in str(caught.value)
    assert caught.value.file == str(path)
    assert len(str(caught.value)) < 500
    assert open_below(tmp_path) == []


def directory(path: Path) -> None:
    path.mkdir()


def link(path: Path) -> None:
    target = path.with_name("target")
    target.write_bytes(framed(one(), EIGHT))
    path.symlink_to(target)


NOT_PLAIN: list[tuple[Callable[[Path], object], str]] = [
    (os.mkfifo, "is no plain file"),
    (directory, "is no plain file"),
    (link, "cannot be opened"),
    (lambda path: None, "is missing"),
]


@pytest.mark.parametrize(("make", "says"), NOT_PLAIN)
@pytest.mark.timeout(10)
def test_no_plain_file(tmp_path: Path, make: Callable[[Path], object], says: str) -> None:
    make(tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=says):
        ShardReader(tmp_path / "a.safetensors")


def test_a_header_that_no_library_would_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altup_moe.checkpoint.header.MAX_HEADER", 100)
    with pytest.raises(ValueError, match="use more files"):
        header_bytes((f"a long name {n}", "F32", (1,)) for n in range(10))


def test_torch_is_of_the_same_mind_about_bytes(tmp_path: Path) -> None:
    values = torch.randn(7, 3).bfloat16()
    write(tmp_path / "a.safetensors", {"x": ("BF16", items(values))})
    save_file({"x": values}, tmp_path / "b.safetensors")
    size = values.numel() * 2
    assert (tmp_path / "a.safetensors").read_bytes()[-size:] == (tmp_path / "b.safetensors").read_bytes()[-size:]
