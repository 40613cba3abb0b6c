"""A checkpoint written from any source of boxes, a piece at a time; and the plan of which file holds what."""

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
"""A file is closed once it holds this much: several are hashed at a time, and a damaged one is found sooner."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype (safetensors' name) of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class NamedSlice:
    """A box of a stored tensor that one file is to hold."""

    name: str
    box: TensorSlice


WritePlan = dict[str, list[NamedSlice]]
"""File name -> what it holds, in order."""


def plan_files(
    rank: int, parts: Iterable[NamedSlice], forms: Mapping[str, TensorSpec], limit: int = FILE_BYTES
) -> WritePlan:
    """What a rank writes, cut into files of about `limit` bytes."""
    plan: WritePlan = {}
    held = limit
    for part in parts:
        if held >= limit:
            held, current = 0, plan.setdefault(f"rank_{rank:05d}_{len(plan):03d}.safetensors", [])
        current.append(part)
        held += num_elements(part.box) * ITEM_BYTES[forms[part.name].dtype]
    return plan


def write_file(
    path: Path, parts: Sequence[NamedSlice], forms: Mapping[str, TensorSpec], read: SliceReader
) -> StoredFile:
    """Write one file, flushed to the disk. Only one piece is held at a time."""
    entries = [(slice_key(p.name, forms[p.name].shape, p.box), forms[p.name].dtype, slice_shape(p.box)) for p in parts]
    return write_tensors(path, entries, (read(part.name, part.box) for part in parts))


def write_files(
    directory: Path, plan: WritePlan, forms: Mapping[str, TensorSpec], read: SliceReader, threads: int = 1
) -> dict[str, StoredFile]:
    """Write every file of a plan, `threads` at a time (then `read` is called from all of them). In the plan's order.

    Raises:
        OSError: the first one; files that were not begun are not written.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        written = pool.map(lambda file: write_file(directory / file[0], file[1], forms, read), plan.items())
        return dict(zip(plan, written, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def stored_tensors(plan: WritePlan, forms: Mapping[str, TensorSpec]) -> dict[str, StoredTensor]:
    """The manifest's tensors for files written by `plan`."""
    pieces: dict[str, list[StoredPiece]] = {name: [] for name in forms}
    for file, parts in plan.items():
        for part in parts:
            key = slice_key(part.name, forms[part.name].shape, part.box)
            pieces[part.name].append(StoredPiece(part.box, file, key))
    return {
        name: StoredTensor(forms[name].shape, forms[name].dtype, tuple(sorted(held, key=lambda p: p.box)))
        for name, held in sorted(pieces.items())
    }


def single_process_plan(forms: Mapping[str, TensorSpec]) -> WritePlan:
    """The plan of one process that writes every tensor whole."""
    return plan_files(0, (NamedSlice(name, full_slice(form.shape)) for name, form in forms.items()), forms)


def write_checkpoint(
    root: Path, head: Manifest, forms: Mapping[str, TensorSpec], plan: WritePlan, read: SliceReader, threads: int = 1
) -> Path:
    """Write a whole checkpoint from one process; on failure nothing of it is left.

    Args:
        root: directory of checkpoints (`store.checkpoints_dir` of a run).
        head: everything of the manifest but `files` and `tensors`.
        forms: every stored tensor.
        plan: which file holds what; together each element once.
        read: gives the items of a box.
        threads: files written at a time, each holding one piece; `read` is called from all of them.
    Returns:
        The checkpoint's directory, which is then the latest of `root`.
    """
    partial = open_partial(root, head.step)
    try:
        files = write_files(partial, plan, forms, read, threads)
        return publish(partial, replace(head, files=files, tensors=stored_tensors(plan, forms)))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
