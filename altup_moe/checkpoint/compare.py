"""Norms of stored tensors and differences between two checkpoints, without torch. Bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from altup_moe.checkpoint.digest import read_row_bands
from altup_moe.checkpoint.manifest import Manifest
from altup_moe.checkpoint.source import Checkpoint

DECODE_BYTES = 1 << 21
"""Bytes of items decoded at a time; as float64 they take up to eight times as much."""
COUNTERS = ("step", "consumed_samples", "skipped_steps", "optimizer_steps", "scheduler_steps", "data_fingerprint")
"""Fields of a manifest that describe the progress of a run and its data."""
_NUMPY = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "U8": "u1", "BOOL": "u1"}


@dataclass(frozen=True)
class TensorDifference:
    """A tensor that differs between two checkpoints a and b.

    ``absolute``: largest |a - b|. ``relative``: ``absolute`` divided by the largest |a| or |b|. Both are infinite where
    a value is NaN, or where the tensors cannot be compared: see ``problem``. ``count``: elements whose bits differ.
    """

    name: str
    relative: float
    absolute: float = math.inf
    count: int = 0
    problem: str = ""


def decode(items: np.ndarray, dtype: str) -> np.ndarray:
    """Items of a stored dtype (as `Checkpoint.read` gives them) as float64."""
    if dtype == "BF16":
        # A bfloat16 is the upper half of a float32.
        return (items.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return items.view(_NUMPY[dtype]).astype(np.float64)


def norm(checkpoint: Checkpoint, name: str) -> float:
    """L2 norm of a stored tensor, summed in float64."""
    dtype = checkpoint.manifest.tensors[name].dtype
    total = 0.0
    for items in read_row_bands(checkpoint, name, DECODE_BYTES):
        values = decode(items, dtype).reshape(-1)
        total += float(values @ values)
    return math.sqrt(total)


def norms(checkpoint: Checkpoint, names: Iterable[str], threads: int = 2) -> dict[str, float]:
    """L2 norms by stored name."""
    wanted = list(names)
    with ThreadPoolExecutor(threads) as pool:
        return dict(zip(wanted, pool.map(lambda name: norm(checkpoint, name), wanted), strict=True))


def tensor_difference(a: Checkpoint, b: Checkpoint, name: str) -> TensorDifference | None:
    """The difference of a tensor that both checkpoints have; None if all bits are equal."""
    ours, theirs = a.manifest.tensors[name], b.manifest.tensors[name]
    if (ours.shape, ours.dtype) != (theirs.shape, theirs.dtype):
        what = f"{ours.dtype} {list(ours.shape)} and {theirs.dtype} {list(theirs.shape)}"
        return TensorDifference(name, math.inf, problem=what)
    count, absolute, largest = 0, 0.0, 0.0
    for left, right in zip(read_row_bands(a, name, DECODE_BYTES), read_row_bands(b, name, DECODE_BYTES), strict=True):
        unequal = left != right
        count += int(np.count_nonzero(unequal))
        x, y = decode(left, ours.dtype), decode(right, ours.dtype)
        largest = max(largest, _largest(x), _largest(y))
        with np.errstate(invalid="ignore"):
            apart = np.abs(x - y)[unequal]
        if apart.size:
            absolute = max(absolute, float(np.where(np.isnan(apart), math.inf, apart).max()))
    if not count:
        return None
    return TensorDifference(name, _ratio(absolute, largest), absolute, count)


def _largest(values: np.ndarray) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return float(finite.max()) if finite.size else 0.0


def _ratio(absolute: float, largest: float) -> float:
    if not absolute:
        return 0.0
    return absolute / largest if largest else math.inf


def tensor_differences(
    a: Checkpoint, b: Checkpoint, wanted: Callable[[str], bool] = lambda name: True, threads: int = 2
) -> list[TensorDifference]:
    """Differences between two checkpoints of any layouts, the largest first; random states are not compared.

    Args:
        wanted: whether the tensor of a stored name is compared.
    """
    ours, theirs = set(_compared(a.manifest, wanted)), set(_compared(b.manifest, wanted))
    found = [TensorDifference(name, math.inf, problem="only in the first") for name in ours - theirs]
    found += [TensorDifference(name, math.inf, problem="only in the second") for name in theirs - ours]
    with ThreadPoolExecutor(threads) as pool:
        found += [d for d in pool.map(lambda name: tensor_difference(a, b, name), sorted(ours & theirs)) if d]
    return sorted(found, key=lambda d: (-d.relative, not d.problem, d.name))


def _compared(manifest: Manifest, wanted: Callable[[str], bool]) -> Iterator[str]:
    return (name for name in manifest.tensors if not name.startswith("rng/") and wanted(name))


def counter_differences(a: Manifest, b: Manifest) -> dict[str, tuple[object, object]]:
    """Field -> both values, of the counters that differ."""
    pairs = {name: (getattr(a, name), getattr(b, name)) for name in COUNTERS}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def name_filter(pattern: str | None) -> Callable[[str], bool]:
    """A test for stored names (KIND/NAME): whether the name, or NAME alone, matches a glob; None matches all."""

    def wanted(name: str) -> bool:
        return pattern is None or fnmatchcase(name, pattern) or fnmatchcase(name.partition("/")[2], pattern)

    return wanted
