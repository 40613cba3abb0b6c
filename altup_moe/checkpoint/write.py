"""Plan the files of a checkpoint, and write them one slice at a time from any source of slices."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from altup_moe.checkpoint.manifest import (
    ITEM_BYTES,
    Manifest,
    SliceReader,
    StoredFile,
    StoredPiece,
    StoredTensor,
    slice_key,
)
from altup_moe.checkpoint.shards import write_tensors
from altup_moe.checkpoint.slices import full_slice, num_elements, slice_shape
from altup_moe.checkpoint.store import open_partial, publish
from altup_moe.parallel.parameter_mapping import TensorSlice

FILE_BYTES = 1 << 28
"""Size in bytes at which a new file begins: several files can be hashed in parallel, and damage is located sooner."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype (safetensors' name) of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class NamedSlice:
    """A slice of the stored tensor `name` (KIND/NAME): the unit that one file holds."""

    name: str
    tensor_slice: TensorSlice


WritePlan = dict[str, list[NamedSlice]]
"""File name -> the slices in it, in order."""


def plan_files(
    rank: int, parts: Iterable[NamedSlice], specs: Mapping[str, TensorSpec], limit: int = FILE_BYTES
) -> WritePlan:
    """Distribute the slices that a rank writes over files of about `limit` bytes."""
    plan: WritePlan = {}
    held = limit
    for part in parts:
        if held >= limit:
            held, current = 0, plan.setdefault(f"rank_{rank:05d}_{len(plan):03d}.safetensors", [])
        current.append(part)
        held += num_elements(part.tensor_slice) * ITEM_BYTES[specs[part.name].dtype]
    return plan


def write_file(
    path: Path, parts: Sequence[NamedSlice], specs: Mapping[str, TensorSpec], read: SliceReader
) -> StoredFile:
    """Write one file and flush it to the disk; one slice is in memory at a time."""
    entries = [
        (slice_key(p.name, specs[p.name].shape, p.tensor_slice), specs[p.name].dtype, slice_shape(p.tensor_slice))
        for p in parts
    ]
    return write_tensors(path, entries, (read(part.name, part.tensor_slice) for part in parts))


def write_files(
    directory: Path, plan: WritePlan, specs: Mapping[str, TensorSpec], read: SliceReader, threads: int = 1
) -> dict[str, StoredFile]:
    """Write every file of a plan, `threads` at a time. `read` must be thread-safe if there are several.

    Returns:
        File name -> size and hash, in the plan's order.
    Raises:
        OSError: the first error; no further file is started.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        written = pool.map(lambda file: write_file(directory / file[0], file[1], specs, read), plan.items())
        return dict(zip(plan, written, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def stored_tensors(plan: WritePlan, specs: Mapping[str, TensorSpec]) -> dict[str, StoredTensor]:
    """The tensors of the manifest for the files of a plan."""
    pieces: dict[str, list[StoredPiece]] = {name: [] for name in specs}
    for file, parts in plan.items():
        for part in parts:
            key = slice_key(part.name, specs[part.name].shape, part.tensor_slice)
            pieces[part.name].append(StoredPiece(part.tensor_slice, file, key))
    return {
        name: StoredTensor(specs[name].shape, specs[name].dtype, tuple(sorted(held, key=lambda p: p.tensor_slice)))
        for name, held in sorted(pieces.items())
    }


def single_process_plan(specs: Mapping[str, TensorSpec]) -> WritePlan:
    """The plan of one process that writes every tensor whole."""
    return plan_files(0, (NamedSlice(name, full_slice(spec.shape)) for name, spec in specs.items()), specs)


def write_checkpoint(
    root: Path, head: Manifest, specs: Mapping[str, TensorSpec], plan: WritePlan, read: SliceReader, threads: int = 1
) -> Path:
    """Write a whole checkpoint from one process. A failure leaves no files.

    Args:
        root: directory of checkpoints (`store.checkpoints_dir` of a run).
        head: everything of the manifest but `files` and `tensors`.
        specs: every stored tensor.
        plan: the slices of each file; together they cover each tensor once.
        read: returns the items of a slice; thread-safe if `threads` > 1.
        threads: files written at a time, each with one slice in memory.
    Returns:
        The checkpoint's directory, which is then the latest of `root`.
    """
    partial = open_partial(root, head.step)
    try:
        files = write_files(partial, plan, specs, read, threads)
        return publish(partial, replace(head, files=files, tensors=stored_tensors(plan, specs)))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
