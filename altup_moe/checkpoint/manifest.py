"""The manifest of a checkpoint: the run it belongs to, and the file and key of every tensor. Strictly read JSON.

`manifest.json` has one line for each tensor. `manifest.sha256` holds its SHA-256 as `sha256sum --check` reads it; the
manifest holds the hashes of all other files.
"""

from __future__ import annotations

import hashlib
import json
import re
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from altup_moe.checkpoint.plain import read_plain, strict_json
from altup_moe.config import DataError
from altup_moe.config.files import write_text
from altup_moe.parallel.parameter_mapping import TensorSlice

FORMAT_VERSION = 2
SLICE_KEY = "box"
"""Key of a piece's slice in `manifest.json`; part of the format on disk, so it stays."""
MANIFEST, DIGEST = "manifest.json", "manifest.sha256"
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
"""Dtype of a stored tensor, by safetensors' name -> bytes of one item."""
FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors")
"""File names that a manifest may contain: never a path."""
STATE_KINDS = ("weights", "exp_avg", "exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col", "main")
"""First parts of the names of stored weights and optimizer state."""
MAX_BYTES = 150_000_000
"""Largest manifest that is read."""
MAX_OBJECTS = 1_000_000
"""Most entries of a manifest (tensors, pieces, files) that are parsed: a run of 50,000 tensors in two pieces each, and
three tensors of state for each, has 600,000."""
MAX_COUNT = 1 << 62
"""Upper limit (excluded) of sizes and counts in a manifest."""


@dataclass(frozen=True)
class StoredPiece:
    """A slice of a global tensor, and the file and the key in it that hold the slice.

    `manifest.json` calls the slice ``box``, as the first version of the format did.
    """

    tensor_slice: TensorSlice
    file: str
    key: str


@dataclass(frozen=True)
class StoredTensor:
    """A global tensor: its shape, its dtype (a key of `ITEM_BYTES`), and the pieces that cover it exactly once."""

    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[StoredPiece, ...]


@dataclass(frozen=True)
class StoredFile:
    """A file's size in bytes and its hex SHA-256."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The state of a run at a step, and the files and tensors that a checkpoint stores of it.

    Tensor names are KIND/NAME: `weights`, `exp_avg`, `exp_avg_sq` (`_row` and `_col` where Adafactor keeps factors) and
    `main` (fp32 copies of half-precision weights) with a parameter's global name, and `rng/RANK/STREAM`, which only the
    layout that wrote it can use. A checkpoint has optimizer state (fp32) for every parameter, or for none.
    """

    step: int
    consumed_samples: int
    skipped_steps: int
    optimizer_steps: int
    """Updates that Adam's bias correction has counted."""
    scheduler_steps: int
    world_size: int
    data_fingerprint: str
    """Hash of the training tokens; empty for a model that was not trained here."""
    config: dict[str, Any]
    """The run's resolved configuration (its `parallel` section is the layout that wrote the checkpoint)."""
    libraries: dict[str, str] = field(default_factory=dict)
    """Library -> version, of the process that wrote the checkpoint."""
    files: dict[str, StoredFile] = field(default_factory=dict)
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    """What the run has changed on its way, oldest first: ``{"step": N, "keys": {KEY: [before, after step N]}}``."""
    passed_over: list[dict[str, Any]] = field(default_factory=list)
    """Training samples that the run has left out after a step, oldest first: ``{"step": N, "samples": [from, to]}``,
    the last excluded. `consumed_samples` counts them."""
    tokenizer_sha256: str = ""
    """Identity of the run's tokenizer (`data.tokenizer.Tokenizer.sha256`); empty where it is not known."""
    guards: dict[str, Any] = field(default_factory=dict)
    """What the run's guards remember (`train.guards.spikes.GuardState`): steps skipped in a row up to this one, losses
    and gradient norms of the last steps."""
    format_version: int = FORMAT_VERSION

    @property
    def skipped_in_row(self) -> int:
        """Steps that were skipped since the last one that was taken, this one included."""
        return int(self.guards.get("skipped_in_row", 0))

    @property
    def has_optimizer(self) -> bool:
        """Whether optimizer state is stored (`Checkpoint` checks that it is complete)."""
        return any(name.partition("/")[0] in STATE_KINDS[1:] for name in self.tensors)

    def of_kind(self, kind: str) -> dict[str, StoredTensor]:
        """Global name -> stored tensor, of one kind."""
        prefix = f"{kind}/"
        return {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}


_MANIFEST_KEYS = [f.name for f in fields(Manifest)]
_LATER_KEYS: dict[str, Any] = {"changes": [], "passed_over": [], "tokenizer_sha256": "", "guards": {}}
"""Keys that older manifests lack, with what they mean then; not written where they say nothing else."""
_FILE_KEYS = [f.name for f in fields(StoredFile)]
_TENSOR_KEYS = ("shape", "dtype", "pieces")
_PIECE_KEYS = (SLICE_KEY, "file", "key")


def slice_key(name: str, shape: tuple[int, ...], tensor_slice: TensorSlice) -> str:
    """Key of a piece in its file: the tensor's name, followed by the slice unless it is the whole tensor."""
    if tensor_slice == tuple((0, n) for n in shape):
        return name
    return f"{name}[{','.join(f'{start}:{stop}' for start, stop in tensor_slice)}]"


def dump(manifest: Manifest) -> str:
    """The manifest as JSON text, one line for each tensor."""
    content = asdict(replace(manifest, tensors={}))
    for key in ("tensors", *(key for key, empty in _LATER_KEYS.items() if content[key] == empty)):
        del content[key]
    head = json.dumps(content, indent=1).removesuffix("\n}")
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(_entry(t))}" for name, t in manifest.tensors.items())
    return f'{head},\n "tensors": {{\n{rows}\n }}\n}}\n'


def _entry(stored: StoredTensor) -> dict[str, Any]:
    """A tensor's entry of the JSON file."""
    pieces = [{SLICE_KEY: piece.tensor_slice, "file": piece.file, "key": piece.key} for piece in stored.pieces]
    return {"shape": stored.shape, "dtype": stored.dtype, "pieces": pieces}


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.sha256`, then `manifest.json`: a directory that contains the latter is complete."""
    text = dump(manifest)
    write_text(directory / DIGEST, f"{hashlib.sha256(text.encode()).hexdigest()}  {MANIFEST}\n")
    write_text(directory / MANIFEST, text)


def read_manifest(directory: Path) -> Manifest:
    """Read a manifest; check its hash, the type of every field and the file names.

    Raises:
        DataError: the manifest is missing, damaged or malformed; the error names the file and the problem.
    """
    path = directory / MANIFEST
    raw, digest = read_plain(path, MAX_BYTES), read_plain(directory / DIGEST, 1 << 10)
    # The hash first: what is damaged is not even parsed.
    if not re.fullmatch(rb"[0-9a-f]{64}  %b\n" % re.escape(MANIFEST.encode()), digest):
        raise DataError(directory / DIGEST, f"is not one line with the SHA-256 of {MANIFEST}")
    if digest[:64] != hashlib.sha256(raw).hexdigest().encode():
        raise DataError(path, f"is not the one that {DIGEST} was written for: one of the two is damaged")
    try:
        content = strict_json(raw, MAX_OBJECTS)
        if not isinstance(content, dict):
            raise ValueError(f"a JSON {type(content).__name__} instead of an object")
        version = content.get("format_version")
        if version != FORMAT_VERSION:
            raise DataError(path, f"is of format version {str(version)[:60]}; this program reads {FORMAT_VERSION}")
        return _manifest(content)
    except DataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(path, f"is no checkpoint manifest ({error})") from error


def _manifest(content: Mapping[str, Any]) -> Manifest:
    known = _fields(_MANIFEST_KEYS, {**_LATER_KEYS, **content})
    for name, kind in typing.get_type_hints(Manifest).items():
        plain = typing.get_origin(kind) or kind
        if type(known[name]) is not plain or (plain is int and not 0 <= known[name] < MAX_COUNT):
            raise ValueError(f"{name} is {str(known[name])[:60]}")
    known["changes"] = [_change(entry) for entry in known["changes"]]
    known["passed_over"] = [_passed_over(entry) for entry in known["passed_over"]]
    known["guards"] = _guards(known["guards"])
    known["libraries"] = {_text(k): _text(v) for k, v in known["libraries"].items()}
    known["files"] = {_file_name(name): _file(entry) for name, entry in known["files"].items()}
    known["tensors"] = {name: _tensor(name, entry, known["files"]) for name, entry in known["tensors"].items()}
    return Manifest(**known)


def _fields(names: Collection[str], content: Any) -> dict[str, Any]:
    """A JSON object that has exactly these keys."""
    if not isinstance(content, dict) or set(content) != set(names):
        found = str(sorted(content) if isinstance(content, dict) else content)[:200]
        raise ValueError(f"an entry has {found} where {sorted(names)} belong")
    return dict(content)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:60]} is no text")
    return value


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(n) is int and 0 <= n < MAX_COUNT for n in values):
        raise ValueError(f"{str(values)[:60]} are no sizes")
    return tuple(values)


def _change(entry: Any) -> dict[str, Any]:
    known = _fields(("step", "keys"), entry)
    _counts([known["step"]])
    if not isinstance(known["keys"], dict) or any(len(_each(values)) != 2 for values in known["keys"].values()):
        raise ValueError(f"{str(known['keys'])[:60]} are no changed keys")
    return known


def _passed_over(entry: Any) -> dict[str, Any]:
    known = _fields(("step", "samples"), entry)
    _counts([known["step"]])
    ends = _counts(known["samples"])
    if len(ends) != 2 or ends[0] > ends[1]:
        raise ValueError(f"{str(known['samples'])[:60]} is no range of samples")
    return known


def _guards(content: Any) -> dict[str, Any]:
    if content == {}:
        return {}
    known = _fields(("skipped_in_row", "losses", "norms"), content)
    _counts([known["skipped_in_row"]])
    for key in ("losses", "norms"):
        if not all(type(number) in (int, float) for number in _each(known[key])):
            raise ValueError(f"{key}: {str(known[key])[:60]} are no numbers")
    return known


def _file_name(name: Any) -> str:
    if not FILE_NAME.fullmatch(_text(name)):
        raise ValueError(f"{name[:60]!r} is no bare file name")
    return name


def _file(entry: Any) -> StoredFile:
    known = _fields(_FILE_KEYS, entry)
    if not re.fullmatch(r"[0-9a-f]{64}", _text(known["sha256"])):
        raise ValueError(f"{known['sha256'][:80]!r} is no SHA-256")
    return StoredFile(_counts([known["size"]])[0], known["sha256"])


def _tensor(name: str, entry: Any, files: Mapping[str, StoredFile]) -> StoredTensor:
    known = _fields(_TENSOR_KEYS, entry)
    if _text(known["dtype"]) not in ITEM_BYTES:
        raise ValueError(f"{name[:200]}: dtype {known['dtype'][:60]!r} is none of {', '.join(ITEM_BYTES)}")
    shape = _counts(known["shape"])
    pieces: list[StoredPiece] = []
    for piece in _each(known["pieces"]):
        part = _fields(_PIECE_KEYS, piece)
        if _file_name(part["file"]) not in files:
            raise ValueError(f"{name[:200]}: {part['file']} is not among the files")
        ends = [_counts(pair) for pair in _each(part[SLICE_KEY])]
        if any(len(pair) != 2 for pair in ends):
            raise ValueError(f"{name[:200]}: {str(part[SLICE_KEY])[:60]} is no slice")
        tensor_slice = tuple((start, stop) for start, stop in ends)
        pieces.append(StoredPiece(tensor_slice, part["file"], _text(part["key"])))
    return StoredTensor(shape, known["dtype"], tuple(pieces))


def _each(values: Any) -> list[Any]:
    if not isinstance(values, list):
        raise ValueError(f"{str(values)[:60]} is no list")
    return values


SliceReader = Callable[[str, TensorSlice], Any]
"""(stored name, slice) -> contiguous numpy array of the slice's shape; items: unsigned integers of the dtype's size."""
