"""Write and strictly read the header of a safetensors file.

Format (https://github.com/huggingface/safetensors): 8 bytes with the header's length (little endian), a JSON object
key -> {dtype, shape, data_offsets}, then the items of all tensors without gaps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from altup_moe.checkpoint.manifest import ITEM_BYTES
from altup_moe.checkpoint.plain import strict_json

MAX_HEADER = 100_000_000
"""Limit of a header in bytes, that of the safetensors library."""

MAX_TENSORS = 200_000
"""Most tensors of a file of which nothing else is known."""
SPARE_TENSORS = 100
"""Tensors beyond twice the expected number for which a header is parsed, so that the odd one is named."""
ENTRY_BYTES = 2000
"""Longest entry of a header that is expected."""


@dataclass(frozen=True)
class HeaderEntry:
    """A tensor of a file. ``offset``: its first byte, from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        """Size of its items in bytes."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


def header_bytes(
    entries: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, list[int]]:
    """The header of a file, and the size in bytes of each tensor's items.

    Args:
        entries: (key, dtype, shape) of every tensor, in the file's order.
        metadata: text values for ``__metadata__``.
    Raises:
        ValueError: a key occurs twice, or the header exceeds `MAX_HEADER`.
    """
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    sizes, offset = [], 0
    for key, dtype, shape in entries:
        if key in header:
            raise ValueError(f"a file would hold {key} twice")
        size = math.prod(shape) * ITEM_BYTES[dtype]
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
        sizes.append(size)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER:
        raise ValueError(f"a header of {len(text)} bytes is too long ({MAX_HEADER}); use more files")
    return len(text).to_bytes(8, "little") + text, sizes


def read_header(file: int, tensors: int | None = None) -> dict[str, HeaderEntry]:
    """Key -> tensor of an open file, in the order of the items.

    Args:
        tensors: how many are expected; a header that claims many more is not parsed. None is `MAX_TENSORS`.

    Raises:
        ValueError: no safetensors header, or it does not match the file's size. OSError: the file cannot be read.
    """
    size = os.fstat(file).st_size
    length = int.from_bytes(os.pread(file, 8, 0), "little")
    most = MAX_TENSORS if tensors is None else 2 * tensors + SPARE_TENSORS
    if not 2 <= length <= min(MAX_HEADER, size - 8, most * ENTRY_BYTES):
        raise ValueError(f"its header would have {length} bytes")
    content = strict_json(os.pread(file, length, 8), most)
    if not isinstance(content, dict):
        raise ValueError("its header is no JSON object")
    content.pop("__metadata__", None)
    spans = {key: _span(key, value) for key, value in content.items()}
    end = start = 8 + length
    entries: dict[str, HeaderEntry] = {}
    for key, (first, last) in sorted(spans.items(), key=lambda item: item[1]):
        entry = HeaderEntry(content[key]["dtype"], tuple(content[key]["shape"]), start + first)
        if entry.offset != end or start + last != end + entry.bytes:
            raise ValueError(f"{key[:200]} does not follow the tensor before it")
        end += entry.bytes
        entries[key] = entry
    if end != size:
        raise ValueError(f"its tensors end at byte {end} of {size}")
    return entries


def _span(key: str, value: Any) -> tuple[int, int]:
    """The data_offsets of an entry of the JSON object, after a check of all field types."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {key[:200]} is not dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"{key[:200]} has the dtype {str(dtype)[:60]!r}")
    for what, numbers in (("shape", shape), ("offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise ValueError(f"{key[:200]} has the {what} {str(numbers)[:60]}")
    if len(offsets) != 2:
        raise ValueError(f"{key[:200]} has the offsets {str(offsets)[:60]}")
    return offsets[0], offsets[1]
