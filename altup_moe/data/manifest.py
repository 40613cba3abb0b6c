"""PREFIX.json: description of a prepared token file, with the hashes that detect damage."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from altup_moe.config.errors import DataError
from altup_moe.config.files import fsync

DATASET_FORMAT_VERSION = 1
_TYPES = {"str": str, "int": int}


@dataclass(frozen=True)
class DatasetManifest:
    """Content of PREFIX.json. ``bytes``: UTF-8 bytes of all documents; hashes are hex SHA-256.

    ``source_key`` identifies the texts and the tokenizer of a named corpus; it is empty for other data.
    """

    corpus: str
    source_key: str
    vocab_size: int
    documents: int
    tokens: int
    bytes: int
    bin_sha256: str
    idx_sha256: str
    tokenizer_sha256: str
    format_version: int = DATASET_FORMAT_VERSION


def write_dataset_manifest(file: Path, manifest: DatasetManifest) -> None:
    """Write the manifest and flush it to disk."""
    file.write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
    fsync(file)


def read_dataset_manifest(file: Path) -> DatasetManifest:
    """Read a manifest that has exactly the known fields, each of the right type.

    Raises:
        DataError: the file is missing, is not JSON (with the byte offset), has another version, or a field is wrong.
    """
    try:
        text = file.read_text(encoding="utf-8")
        content = json.loads(text)
    except OSError as error:
        problem = f"cannot be read ({error.strerror}); prepare the data with altup-moe prepare-data"
        raise DataError(file, problem) from error
    except UnicodeDecodeError as error:
        raise DataError(file, f"is not UTF-8 ({error.reason})", error.start) from error
    except json.JSONDecodeError as error:
        raise DataError(file, f"is not JSON ({error.msg})", len(text[: error.pos].encode())) from error
    if not isinstance(content, dict):
        raise DataError(file, f"holds a {type(content).__name__}, not the manifest of prepared data")
    if (version := content.get("format_version")) != DATASET_FORMAT_VERSION:
        raise DataError(file, f"format version {version!r}; this program reads {DATASET_FORMAT_VERSION}")
    known = {field.name: _TYPES[str(field.type)] for field in fields(DatasetManifest)}
    if odd := sorted(known.keys() ^ content.keys()):
        raise DataError(file, f"is no manifest of prepared data: missing or unknown {', '.join(odd)}")
    for name, kind in known.items():
        if type(content[name]) is not kind:
            raise DataError(file, f"{name} is {content[name]!r}, not of type {kind.__name__}")
    return DatasetManifest(**content)
