"""The manifest: written and read back the same; everything that is not exactly one is refused and said why."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from altup_moe.checkpoint.manifest import (
    DIGEST,
    MANIFEST,
    Manifest,
    StoredFile,
    StoredPiece,
    StoredTensor,
    dump,
    read_manifest,
    slice_key,
    write_manifest,
)
from altup_moe.config import DataError
from tests.unit.checkpoint.models import head_of

FILE = "rank_00000_000.safetensors"
TENSORS = {
    "weights/a": StoredTensor((4, 2), "BF16", (StoredPiece(((0, 4), (0, 2)), FILE, "weights/a"),)),
    "exp_avg/a": StoredTensor(
        (4, 2),
        "F32",
        (
            StoredPiece(((0, 1), (0, 2)), FILE, "exp_avg/a[0:1,0:2]"),
            StoredPiece(((1, 4), (0, 2)), "b.safetensors", "exp_avg/a[1:4,0:2]"),
        ),
    ),
    "weights/scalar": StoredTensor((), "F32", (StoredPiece((), FILE, "weights/scalar"),)),
}
FULL = replace(
    head_of(),
    files={FILE: StoredFile(100, "0" * 64), "b.safetensors": StoredFile(0, "f" * 64)},
    tensors=TENSORS,
)


def put(directory: Path, text: str | bytes) -> None:
    """A manifest with a hash that fits it."""
    raw = text.encode() if isinstance(text, str) else text
    (directory / MANIFEST).write_bytes(raw)
    (directory / DIGEST).write_text(f"{hashlib.sha256(raw).hexdigest()}  {MANIFEST}\n")


def test_round_trip(tmp_path: Path) -> None:
    write_manifest(tmp_path, FULL)
    assert read_manifest(tmp_path) == FULL
    assert read_manifest(tmp_path).tensors["exp_avg/a"].pieces[1].tensor_slice == ((1, 4), (0, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == [MANIFEST, DIGEST]
    raw = (tmp_path / MANIFEST).read_bytes()
    assert (tmp_path / DIGEST).read_text() == f"{hashlib.sha256(raw).hexdigest()}  {MANIFEST}\n"
    rows = [line for line in raw.decode().splitlines() if line.startswith('  "')]
    assert len([row for row in rows if "pieces" in row]) == len(TENSORS), "a tensor a line"


def test_round_trip_without_tensors_and_with_other_alphabets(tmp_path: Path) -> None:
    odd = replace(head_of(), data_fingerprint="Größe \u2028 \U0001f600", libraries={"ключ": "値"})
    write_manifest(tmp_path, odd)
    assert read_manifest(tmp_path) == odd


def test_kinds() -> None:
    assert (FULL.has_optimizer, head_of().has_optimizer) == (True, False)
    assert set(FULL.of_kind("weights")) == {"a", "scalar"}
    assert set(FULL.of_kind("exp_avg_sq")) == set()
    only_second = replace(FULL, tensors={"exp_avg_sq/a": TENSORS["weights/a"]})
    assert only_second.has_optimizer


def test_keys_of_pieces() -> None:
    assert slice_key("a", (4, 2), ((0, 4), (0, 2))) == "a"
    assert slice_key("a", (4, 2), ((0, 4), (0, 1))) == "a[0:4,0:1]"
    assert slice_key("a", (), ()) == "a"


Change = Callable[[dict[str, Any]], object]


def at(*path: str | int, value: object) -> Change:
    """Set a place of the manifest's JSON."""

    def change(content: dict[str, Any]) -> None:
        place: Any = content
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def without(*path: str | int) -> Change:
    """Remove a place of the manifest's JSON."""

    def change(content: dict[str, Any]) -> None:
        place: Any = content
        for key in path[:-1]:
            place = place[key]
        del place[path[-1]]

    return change


def renamed_file(name: str) -> Change:
    """Call the first file something else, everywhere."""

    def change(content: dict[str, Any]) -> None:
        content["files"][name] = content["files"].pop(FILE)
        for entry in content["tensors"].values():
            for piece in entry["pieces"]:
                piece["file"] = name if piece["file"] == FILE else piece["file"]

    return change


PIECE = ("tensors", "weights/a", "pieces", 0)
COUNTS = ("step", "consumed_samples", "skipped_steps", "optimizer_steps", "scheduler_steps", "world_size")
WRONG: list[tuple[Change, str]] = [
    *((at(key, value=value), f"{key} is") for key in COUNTS for value in (-1, 1.0, "1", True, None, [1], 1 << 62)),
    *((without(key), "an entry has") for key in (*COUNTS, "data_fingerprint", "config", "libraries")),
    *((without(key), "an entry has") for key in ("files", "tensors")),
    (without("format_version"), "format version None"),
    *((at("format_version", value=n), f"format version {n}; this program reads 2") for n in (1, 3, "2", None, [2])),
    (at("format_version", value=2.0), "format_version is 2.0"),
    (at("more", value=1), "an entry has"),
    *((at(key, value=[]), f"{key} is") for key in ("config", "libraries", "files", "tensors", "data_fingerprint")),
    (at("data_fingerprint", value=None), "data_fingerprint is None"),
    (at("libraries", "torch", value=2), "2 is no text"),
    (at("files", FILE, value=[]), "an entry has"),
    (at("files", FILE, value="text"), "an entry has"),
    (at("files", FILE, "more", value=1), "an entry has"),
    (without("files", FILE, "size"), "an entry has"),
    *((at("files", FILE, "size", value=v), "are no sizes") for v in (-1, 1.5, "1", True, None, 1 << 62, 10**400)),
    *((at("files", FILE, "sha256", value=v), "SHA-256") for v in ("0" * 63, "0" * 65, "F" * 64, "0" * 63 + "\n", "")),
    (at("files", FILE, "sha256", value=7), "7 is no text"),
    (without("files", FILE), f"{FILE} is not among the files"),
    *(
        (renamed_file(name), "is no bare file name")
        for name in (
            "../x.safetensors",
            "/etc/x.safetensors",
            "sub/x.safetensors",
            "..\\x.safetensors",
            ".hidden.safetensors",
            "x.safetensors\n",
            "x\0.safetensors",
            "\0",
            "größe.safetensors",
            "x\u202e.safetensors",
            "٣.safetensors",
            "-x.safetensors",
            "x.bin",
            ".safetensors",
            "",
            "..",
            MANIFEST,
        )
    ),
    (at("tensors", "weights/a", value=None), "an entry has"),
    (at("tensors", "weights/a", "more", value=1), "an entry has"),
    (without("tensors", "weights/a", "dtype"), "an entry has"),
    *((at("tensors", "weights/a", "dtype", value=v), "dtype") for v in ("F8_E4M3", "bf16", "")),
    *((at("tensors", "weights/a", "dtype", value=v), "is no text") for v in (None, 2, ["F32"], {})),
    *((at("tensors", "weights/a", "shape", value=v), "no sizes") for v in (None, 4, "42", [-4, 2], [4.0, 2], [True])),
    (at("tensors", "weights/a", "pieces", value={}), "is no list"),
    (at(*PIECE, value=[]), "an entry has"),
    (at(*PIECE, "more", value=1), "an entry has"),
    (without(*PIECE, "key"), "an entry has"),
    (at(*PIECE, "key", value=3), "3 is no text"),
    (at(*PIECE, "file", value=3), "3 is no text"),
    (at(*PIECE, "file", value="c.safetensors"), "c.safetensors is not among the files"),
    *((at(*PIECE, "box", value=v), "is no") for v in (None, {}, "0:4", [[0, 4, 2], [0, 2]], [[0], [0, 2]])),
    *((at(*PIECE, "box", value=v), "no sizes") for v in ([[-1, 4], [0, 2]], [[0, 4.0]], [0, 4], [["0", "4"]])),
]


@pytest.mark.parametrize(("change", "says"), WRONG)
def test_what_is_no_manifest(tmp_path: Path, change: Change, says: str) -> None:
    content = copy.deepcopy(json.loads(dump(FULL)))
    change(content)
    put(tmp_path, json.dumps(content))
    with pytest.raises(DataError) as caught:
        read_manifest(tmp_path)
    assert caught.value.file == str(tmp_path / MANIFEST)
    assert says in caught.value.problem
    assert len(str(caught.value)) < 700


TEXTS: list[tuple[bytes, str]] = [
    (b"", "is no checkpoint manifest"),
    (b"[]", "a JSON list instead of an object"),
    (b"null", "a JSON NoneType"),
    (b"{", "is no checkpoint manifest"),
    (b'{"a": NaN}', "NaN"),
    (b'{"a": -Infinity}', "-Infinity"),
    (b'{"a": 1e999}', "too large a number"),
    (b'{"a": 1' + b"0" * 5000 + b"}", "is no checkpoint manifest"),
    (b'{"step": 1, "step": 1}', "'step' stands twice"),
    (b'{"config": {"x": [{"y": 1, "y": 1}]}}', "'y' stands twice"),
    (b'{"\xff": 1}', "utf-8"),
    (b"\xef\xbb\xbf{}", "is no checkpoint manifest"),
    ("{}".encode("utf-16"), "utf-8"),
    (b"[" * 200_000, "nested too deeply"),
    (b'{"a":' * 200_000, "nested too deeply"),
]


@pytest.mark.parametrize(("raw", "says"), TEXTS)
def test_what_is_no_json(tmp_path: Path, raw: bytes, says: str) -> None:
    put(tmp_path, raw)
    with pytest.raises(DataError, match=MANIFEST) as caught:
        read_manifest(tmp_path)
    assert says in caught.value.problem


def test_a_damaged_manifest_is_not_even_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path, FULL)
    monkeypatch.setattr("altup_moe.checkpoint.manifest.strict_json", lambda raw: pytest.fail("it was"))
    path = tmp_path / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"step": 3', b'"step": 4'))
    with pytest.raises(DataError, match="one of the two is damaged"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw[:-1],
        lambda raw: raw + b"\n",
        lambda raw: raw[:63] + raw[64:],
        lambda raw: raw.upper(),
        lambda raw: b"",
        lambda raw: b"\xff" + raw[1:],
        lambda raw: raw.replace(b"manifest", b"manifesto"),
    ],
)
def test_a_damaged_hash_file(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    write_manifest(tmp_path, FULL)
    path = tmp_path / DIGEST
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError) as caught:
        read_manifest(tmp_path)
    assert caught.value.file == str(path)


@pytest.mark.parametrize("name", [MANIFEST, DIGEST])
def test_missing(tmp_path: Path, name: str) -> None:
    write_manifest(tmp_path, FULL)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=f"{name}: is missing"):
        read_manifest(tmp_path)


def test_hashes_have_the_form_of_sha256sum(tmp_path: Path) -> None:
    write_manifest(tmp_path, FULL)
    checked = subprocess.run(["sha256sum", "--check", "--strict", DIGEST], cwd=tmp_path, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout) == (0, f"{MANIFEST}: OK\n")


LATER = {"changes", "passed_over", "tokenizer_sha256", "guards"}


def test_a_manifest_has_no_defaults_left_out() -> None:
    """But for keys that programs of their time do not know, where they say nothing."""
    assert set(json.loads(dump(head_of()))) == set(Manifest.__dataclass_fields__) - LATER


CHANGES = [{"step": 3, "keys": {"train.steps": [9, 12], "optim.decay_steps": [None, 4]}}, {"step": 5, "keys": {}}]


def test_changed_keys_are_read_back(tmp_path: Path) -> None:
    changed = replace(FULL, changes=CHANGES)
    write_manifest(tmp_path, changed)
    assert read_manifest(tmp_path) == changed


@pytest.mark.parametrize(
    "changes",
    [{}, [3], [{"step": 3}], [{"step": "3", "keys": {}}], [{"step": 3, "keys": []}], [{"step": 3, "keys": {"a": [1]}}]],
)
def test_damaged_changes(changes: object, tmp_path: Path) -> None:
    write_manifest(tmp_path, replace(FULL, changes=changes))
    with pytest.raises(DataError, match="is no checkpoint manifest"):
        read_manifest(tmp_path)


GUARDS = {"skipped_in_row": 2, "losses": [5.25, 1], "norms": []}
PASSED = [{"step": 4, "samples": [32, 48]}]


def test_guards_and_passed_over_samples_are_read_back(tmp_path: Path) -> None:
    held = replace(FULL, guards=GUARDS, passed_over=PASSED)
    write_manifest(tmp_path, held)
    assert read_manifest(tmp_path) == held
    assert held.skipped_in_row == 2
    assert FULL.skipped_in_row == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"guards": {"skipped_in_row": 1}},
        {"guards": {**GUARDS, "skipped_in_row": -1}},
        {"guards": {**GUARDS, "losses": ["5"]}},
        {"guards": {**GUARDS, "norms": [float("nan")]}},
        {"guards": []},
        {"passed_over": [{"step": 4, "samples": [48, 32]}]},
        {"passed_over": [{"step": 4, "samples": [32]}]},
        {"passed_over": [{"step": -4, "samples": [32, 48]}]},
        {"passed_over": [[4, 32, 48]]},
    ],
)
def test_damaged_guards(fields: dict, tmp_path: Path) -> None:
    write_manifest(tmp_path, replace(FULL, **fields))
    with pytest.raises(DataError, match="is no checkpoint manifest"):
        read_manifest(tmp_path)
