"""Read a checkpoint: check its structure when it is opened, verify its hashes, read any slice of any tensor.

A slice is assembled from the stored pieces that intersect it. Neither the layout that wrote the checkpoint nor the
layout of the reader matters.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from altup_moe.checkpoint.counters import counter_problem
from altup_moe.checkpoint.manifest import DIGEST, MANIFEST, STATE_KINDS, Manifest, StoredTensor, read_manifest
from altup_moe.checkpoint.optimizer_state_shapes import state_shapes
from altup_moe.checkpoint.shards import ShardReader, ShardReaders, item_type
from altup_moe.checkpoint.slices import coverage_problem, full_slice, in_bounds, intersect, relative_to, slice_shape
from altup_moe.config import DataError, RunConfig, UserError
from altup_moe.config.load import from_dict
from altup_moe.config.locks import hold_for_reading
from altup_moe.parallel.parameter_mapping import TensorSlice
from altup_moe.parallel.parameter_names import global_shapes, is_buffer

HALF_DTYPES = ("BF16", "F16")
"""Half-precision dtypes: of such weights the optimizer keeps an fp32 copy."""


class Checkpoint(ShardReaders):
    """An open checkpoint directory. Close it, or use it in a `with` statement.

    Raises:
        DataError: a file is missing, has another size, is not in the manifest, or is no regular file; or the tensors
            are incomplete or do not match the configuration. The error names the file.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory = directory
        if directory.is_symlink():
            raise DataError(directory, "is a symbolic link; a checkpoint is a directory of its own, name that one")
        # `prune` keeps a checkpoint that somebody reads.
        self._held: int | None = hold_for_reading(directory / MANIFEST)
        try:
            self._open(directory)
        except BaseException:
            self.close()
            raise

    def _open(self, directory: Path) -> None:
        self.manifest: Manifest = read_manifest(directory)
        try:
            self.config: RunConfig = from_dict(self.manifest.config)
        except UserError as error:
            raise DataError(directory / MANIFEST, f"its configuration is of no run ({error})") from error
        if problem := counter_problem(self.manifest, self.config, directory.name):
            raise DataError(directory / MANIFEST, problem)
        _check_files(directory, self.manifest)
        held = Counter(piece.file for stored in self.manifest.tensors.values() for piece in stored.pieces)
        for name in self.manifest.files:
            self._readers[name] = ShardReader(directory / name, held[name])
        self._check_tensors()
        _check_model(directory, self.manifest, self.config)

    def close(self) -> None:
        """Close the files."""
        super().close()
        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    def verify(self, files: Iterable[str] | None = None, threads: int | None = None) -> None:
        """Compare files (all, or the named ones) with their hashes.

        Raises:
            DataError: the first file, in the manifest's order, whose bytes are not those that were written.
        """
        names = list(self.manifest.files if files is None else files)
        pool = ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1))
        try:
            digests = pool.map(lambda name: self._readers[name].sha256(), names)
            for name, digest in zip(names, digests, strict=True):
                if digest != self.manifest.files[name].sha256:
                    raise DataError(self.directory / name, "its bytes are not those that were saved (SHA-256 differs)")
        finally:
            pool.shutdown(cancel_futures=True)

    def read_into(self, name: str, tensor_slice: TensorSlice, out: np.ndarray) -> None:
        """Copy a slice of a stored tensor into `out`, an array of the slice's shape and `item_type`. Thread-safe.

        Raises:
            ValueError: the slice does not lie in the tensor, or `out` has another shape.
        """
        stored = self.manifest.tensors[name]
        if not in_bounds(tensor_slice, stored.shape):
            raise ValueError(f"{name} has the shape {stored.shape}, which has no {tensor_slice}")
        if out.shape != slice_shape(tensor_slice):
            raise ValueError(f"an array of {out.shape} cannot take {tensor_slice} of {name}")
        for piece in stored.pieces:
            common = intersect(piece.tensor_slice, tensor_slice)
            if common is not None:
                target = tuple(slice(a, b) for a, b in relative_to(common, tensor_slice))
                # A scalar's slice would be a copy, not a view.
                part = out[target] if target else out
                self._readers[piece.file].read_into(piece.key, relative_to(common, piece.tensor_slice), part)

    def read(self, name: str, tensor_slice: TensorSlice | None = None) -> np.ndarray:
        """A slice of a stored tensor (None: all of it) as a new array of `item_type` items."""
        stored = self.manifest.tensors[name]
        tensor_slice = full_slice(stored.shape) if tensor_slice is None else tensor_slice
        out = np.empty(slice_shape(tensor_slice), item_type(stored.dtype))
        self.read_into(name, tensor_slice, out)
        return out

    def _check_tensors(self) -> None:
        held = {(file, key) for file, reader in self._readers.items() for key in reader.entries}
        for name, stored in self.manifest.tensors.items():
            problem = coverage_problem(stored.shape, (piece.tensor_slice for piece in stored.pieces))
            if problem:
                raise DataError(self.directory / MANIFEST, f"{name}: {problem}")
            for piece in stored.pieces:
                if (piece.file, piece.key) not in held:
                    raise DataError(self.directory / piece.file, f"lacks {piece.key}, or the manifest has it twice")
                held.remove((piece.file, piece.key))
                entry = self._readers[piece.file].entries[piece.key]
                if (entry.dtype, entry.shape) != (stored.dtype, slice_shape(piece.tensor_slice)):
                    found = (
                        f"{entry.dtype} {list(entry.shape)}, not {stored.dtype} {list(slice_shape(piece.tensor_slice))}"
                    )
                    raise DataError(self.directory / piece.file, f"{piece.key} is {found}")
        for file, key in sorted(held):
            raise DataError(self.directory / file, f"holds {key}, which the manifest does not name")


def _check_files(directory: Path, manifest: Manifest) -> None:
    """Raise DataError unless the directory contains exactly the manifest's files, regular and of the right sizes."""
    try:
        present = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(directory)}
    except OSError as error:
        raise DataError(directory, f"cannot be read ({error.strerror})") from error
    for name in (*manifest.files, MANIFEST, DIGEST):
        if name not in present:
            raise DataError(directory / name, "is missing")
    for name, found in sorted(present.items()):
        if not stat.S_ISREG(found.st_mode):
            raise DataError(directory / name, "is no plain file")
        if name in (MANIFEST, DIGEST):
            continue
        if name not in manifest.files:
            raise DataError(directory / name, "is not part of the checkpoint (the manifest does not name it)")
        if found.st_size != manifest.files[name].size:
            raise DataError(directory / name, f"has {found.st_size} bytes; {manifest.files[name].size} were saved")


def _check_model(directory: Path, manifest: Manifest, config: RunConfig) -> None:
    """Raise DataError unless the tensors are those of the configured model, with all optimizer state or none."""
    for name in manifest.tensors:
        if name.partition("/")[0] not in (*STATE_KINDS, "rng"):
            raise DataError(directory / MANIFEST, f"{name[:200]} is of no known kind ({', '.join(STATE_KINDS)}, rng)")
    shapes = _model_shapes(directory, manifest, config)
    trained = {name: shape for name, shape in shapes.items() if not is_buffer(name)}
    weights = manifest.of_kind("weights")
    _same(directory, "weights", weights, shapes, ("F32", *HALF_DTYPES))
    if manifest.has_optimizer:
        halves = {name: shape for name, shape in trained.items() if weights[name].dtype in HALF_DTYPES}
        states = {name: state_shapes(config.optim.optimizer, shape) for name, shape in trained.items()}
        for kind in STATE_KINDS[1:-1]:
            expected = {name: shapes[kind] for name, shapes in states.items() if kind in shapes}
            _same(directory, kind, manifest.of_kind(kind), expected, ("F32",))
        _same(directory, "main", manifest.of_kind("main"), halves, ("F32",))


def _model_shapes(directory: Path, manifest: Manifest, config: RunConfig) -> dict[str, tuple[int, ...]]:
    """Global name -> shape of the configured model.

    Sizes that the stored tensors cannot match are refused first: a damaged configuration must not make this loop run
    for hours.
    """
    m, tensors = config.model, manifest.tensors
    rows = max((size for stored in tensors.values() for size in stored.shape), default=0)
    limits = (
        ("model.num_layers", m.num_layers, len(tensors)),
        ("model.num_decoder_layers", m.decoder_layers, len(tensors)),
        ("moe.num_experts", config.moe.num_experts, len(tensors)),
        ("model.num_query_groups", m.num_query_groups, rows),
    )
    for key, value, most in limits:
        if value > most:
            raise DataError(directory / MANIFEST, f"its configuration has {key} {value}; its tensors are too few")
    try:
        return global_shapes(config)
    except (ArithmeticError, KeyError, ValueError) as error:
        raise DataError(directory / MANIFEST, f"its configuration is of no model ({error})") from error


def _same(
    directory: Path,
    kind: str,
    stored: dict[str, StoredTensor],
    expected: dict[str, tuple[int, ...]],
    dtypes: tuple[str, ...],
) -> None:
    for what, names in (("lacks", expected.keys() - stored.keys()), ("has", stored.keys() - expected.keys())):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            ending = "" if what == "lacks" else ", which the model of its configuration has not"
            raise DataError(directory / MANIFEST, f"{what} {kind}/{min(names)}{more}{ending}")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            problem = f"{kind}/{name} is {list(stored[name].shape)}; the model of its configuration has {list(shape)}"
            raise DataError(directory / MANIFEST, problem)
        if stored[name].dtype not in dtypes:
            problem = f"{kind}/{name} is {stored[name].dtype}; it can be {' or '.join(dtypes)}"
            raise DataError(directory / MANIFEST, problem)
