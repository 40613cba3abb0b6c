"""Read and write a Hugging Face directory (`config.json`, safetensors), one tensor at a time; refuse pickles."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from altup_moe.checkpoint.header import MAX_HEADER, MAX_TENSORS, HeaderEntry
from altup_moe.checkpoint.hf.names import hub_name, is_redundant, tied_copies
from altup_moe.checkpoint.manifest import FILE_NAME, ITEM_BYTES
from altup_moe.checkpoint.plain import read_plain, strict_json
from altup_moe.checkpoint.shards import ShardReader, ShardReaders, write_tensors
from altup_moe.checkpoint.slices import full_slice
from altup_moe.checkpoint.tensors import as_tensor
from altup_moe.checkpoint.write import TensorSpec
from altup_moe.config import DataError
from altup_moe.config.files import write_text
from altup_moe.parallel.parameter_mapping import TensorSlice

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F32", "BF16", "F16")
"""Dtypes of weights that can be imported."""
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def read_json_object(path: Path, most: int | None = None) -> dict[str, Any]:
    """The content of a JSON file that contains an object. Symbolic links are followed.

    Args:
        most: entries that it may have.
    Raises:
        DataError: the file cannot be read, or its content is not an object.
    """
    # The hub's cache contains symbolic links.
    raw = read_plain(path.resolve(), MAX_HEADER if most is not None else None)
    if most is not None and raw.count(b",") > most:
        raise DataError(path, f"has more than {most:,} entries")
    try:
        content = strict_json(raw)
    except ValueError as error:
        raise DataError(path, f"cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise DataError(path, f"holds a JSON {type(content).__name__}, not an object")
    return content


class HubWeights(ShardReaders):
    """The open safetensors files of a directory. Close it, or use it in a `with` statement.

    Raises:
        DataError: no such files (pickles are never loaded), a damaged one, or an index that does not fit them.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        self._file_of: dict[str, str] = {}
        try:
            for file in self._files():
                # The hub's cache contains symbolic links.
                self._readers[file] = ShardReader((directory / file).resolve())
                for name in self._readers[file].entries:
                    if name in self._file_of:
                        raise DataError(directory / file, f"holds {name}, as {self._file_of[name]} does")
                    self._file_of[name] = file
        except BaseException:
            self.close()
            raise

    def entry(self, name: str) -> HeaderEntry:
        """Dtype and shape of a tensor."""
        return self._readers[self._file_of[name]].entries[name]

    def read(self, name: str, tensor_slice: TensorSlice | None = None) -> Tensor:
        """A slice of a tensor; None reads the whole tensor."""
        entry, reader = self.entry(name), self._readers[self._file_of[name]]
        return as_tensor(
            reader.read(name, full_slice(entry.shape) if tensor_slice is None else tensor_slice), entry.dtype
        )

    def match(self, shapes: Mapping[str, tuple[int, ...]], family: str, tied: bool) -> dict[str, str]:
        """Global name -> name in the files, of every tensor of a model.

        Args:
            shapes: global name -> shape, of every parameter. family: key of `hub_name`.
            tied: whether the output layer is the embedding table.
        Raises:
            DataError: a tensor is missing, unknown, of another shape, or not of a floating-point dtype.
        """
        names = {name: hub_name(name, family) for name in shapes}
        for name, theirs in names.items():
            if theirs not in self._file_of:
                raise DataError(self.directory, f"lacks the tensor {theirs}")
            entry, file = self.entry(theirs), self.directory / self._file_of[theirs]
            if entry.shape != shapes[name]:
                raise DataError(file, f"{theirs} is {list(entry.shape)}; by config.json it is {list(shapes[name])}")
            if entry.dtype not in FLOATS:
                raise DataError(file, f"{theirs} is of {entry.dtype}; {', '.join(FLOATS)} would fit")
        equal = tied_copies(family, tied)
        for extra in sorted(set(self._file_of) - set(names.values())):
            if is_redundant(extra) or (extra in equal and self._same(extra, names[equal[extra]])):
                continue
            file = self.directory / self._file_of[extra]
            raise DataError(file, f"holds {extra}, which a model of its config.json has not")
        return names

    def _same(self, one: str, other: str) -> bool:
        return torch.equal(self.read(one), self.read(other))

    def _files(self) -> list[str]:
        index = self.directory / INDEX
        if index.is_file():
            held = read_json_object(index, MAX_TENSORS).get("weight_map")
            files = sorted(set(held.values())) if isinstance(held, dict) else []
            wrong = [name for name in files if not isinstance(name, str) or not FILE_NAME.fullmatch(name)]
            if wrong or not files:
                raise DataError(index, f"has no weight_map of bare .safetensors names ({str(wrong[:1])[:60]})")
            return files
        if (self.directory / SINGLE).is_file():
            return [SINGLE]
        pickled = sorted(path.name for pattern in _PICKLES for path in self.directory.glob(pattern))
        if pickled:
            raise DataError(self.directory / pickled[0], "is a pickle, which is never loaded; save it as safetensors")
        raise DataError(self.directory, f"has neither {SINGLE} nor {INDEX}")


def cut_shards(specs: Mapping[str, TensorSpec], limit: int) -> dict[str, list[str]]:
    """File name (as on the hub) -> tensors in order; each file has at most `limit` bytes, or one tensor."""
    shards: list[list[str]] = []
    held = limit
    for name, spec in specs.items():
        size = int(np.prod(spec.shape)) * ITEM_BYTES[spec.dtype]
        if held + size > limit or not shards:
            held = 0
            shards.append([])
        shards[-1].append(name)
        held += size
    if len(shards) == 1:
        return {SINGLE: shards[0]}
    return {f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors": names for n, names in enumerate(shards)}


def write_weights(
    directory: Path, specs: Mapping[str, TensorSpec], read: Callable[[str], np.ndarray], limit: int
) -> None:
    """Write tensors under their hub names, with an index if there are several files.

    Args:
        read: hub name -> the tensor's items (see `checkpoint.tensors.items`). limit: largest file in bytes.
    """
    shards = cut_shards(specs, limit)
    for file, names in shards.items():
        entries = [(name, specs[name].dtype, specs[name].shape) for name in names]
        write_tensors(directory / file, entries, map(read, names), {"format": "pt"})
    if len(shards) > 1:
        total = sum(int(np.prod(spec.shape)) * ITEM_BYTES[spec.dtype] for spec in specs.values())
        weight_map = {name: file for file, names in shards.items() for name in names}
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(directory / INDEX, json.dumps(content, indent=2) + "\n")
