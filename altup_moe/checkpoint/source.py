"""A checkpoint opened for reading: its structure checked at once, its bytes by hash, its tensors box by box.

Nothing here knows the layout that wrote it or the one that asks: a box is put together from the pieces that it meets.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import numpy as np

from altup_moe.checkpoint.boxes import box_shape, meet, uncovered, whole, within
from altup_moe.checkpoint.manifest import DIGEST, MANIFEST, Manifest, StoredTensor, read_manifest
from altup_moe.checkpoint.shards import ShardReader, carrier
from altup_moe.config import DataError, RunConfig
from altup_moe.config.files import sha256_file
from altup_moe.config.load import from_dict
from altup_moe.parallel.names import Box, global_shapes, is_buffer

HALF = ("BF16", "F16")
"""Dtypes of weights that the optimizer keeps an fp32 copy of."""


class Checkpoint:
    """An open checkpoint directory. Close it, or use it in a `with` statement.

    Raises:
        DataError: files are missing, of another size, not named in the manifest, or no plain files; tensors are
            incomplete, or not those of the configuration. It names the file.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest: Manifest = read_manifest(directory)
        self.config: RunConfig = from_dict(self.manifest.config)
        _check_files(directory, self.manifest)
        self._readers: dict[str, ShardReader] = {}
        try:
            for name in self.manifest.files:
                self._readers[name] = ShardReader(directory / name)
            self._check_tensors()
            _check_model(directory, self.manifest, self.config)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its files."""
        for reader in self._readers.values():
            reader.__exit__(None, None, None)
        self._readers.clear()

    def verify(self, files: Iterable[str] | None = None, threads: int | None = None) -> None:
        """Compare files (all, or the named ones) with their hashes.

        Raises:
            DataError: the first file, in the manifest's order, whose bytes are not those that were written.
        """
        names = list(self.manifest.files if files is None else files)
        with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
            for name, digest in zip(names, pool.map(self._digest, names), strict=True):
                if digest != self.manifest.files[name].sha256:
                    raise DataError(self.directory / name, "its bytes are not those that were saved (SHA-256 differs)")

    def read_into(self, name: str, box: Box, out: np.ndarray) -> None:
        """A box of a stored tensor into `out`: an array of the box's shape of `carrier` items."""
        for piece in self.manifest.tensors[name].pieces:
            common = meet(piece.box, box)
            if common is not None:
                target = tuple(slice(a, b) for a, b in within(common, box))
                # A scalar's slice would be a copy, not a view.
                part = out[target] if target else out
                self._readers[piece.file].read_into(piece.key, within(common, piece.box), part)

    def read(self, name: str, box: Box | None = None) -> np.ndarray:
        """A box of a stored tensor (None: all of it) as a new array of `carrier` items."""
        stored = self.manifest.tensors[name]
        box = whole(stored.shape) if box is None else box
        out = np.empty(box_shape(box), carrier(stored.dtype))
        self.read_into(name, box, out)
        return out

    def _digest(self, name: str) -> str:
        try:
            return sha256_file(self.directory / name)
        except OSError as error:
            raise DataError(self.directory / name, f"cannot be read ({error.strerror})") from error

    def _check_tensors(self) -> None:
        held = {(file, key) for file, reader in self._readers.items() for key in reader.entries}
        for name, stored in self.manifest.tensors.items():
            problem = uncovered(stored.shape, (piece.box for piece in stored.pieces))
            if problem:
                raise DataError(self.directory / MANIFEST, f"{name}: {problem}")
            for piece in stored.pieces:
                place = (piece.file, piece.key)
                if place not in held:
                    raise DataError(self.directory / piece.file, f"lacks {piece.key}, or the manifest has it twice")
                held.remove(place)
                entry = self._readers[piece.file].entries[piece.key]
                if (entry.dtype, entry.shape) != (stored.dtype, box_shape(piece.box)):
                    found = f"{entry.dtype} {list(entry.shape)}, not {stored.dtype} {list(box_shape(piece.box))}"
                    raise DataError(self.directory / piece.file, f"{piece.key} is {found}")
        for file, key in sorted(held):
            raise DataError(self.directory / file, f"holds {key}, which the manifest does not name")


def _check_files(directory: Path, manifest: Manifest) -> None:
    """Every file is there, plain and of the right size, and there is no other."""
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
    """The tensors are those of the manifest's configuration: all weights, and optimizer state for all or for none."""
    shapes = global_shapes(config)
    trained = {name: shape for name, shape in shapes.items() if not is_buffer(name)}
    weights = manifest.of_kind("weights")
    _same(directory, "weights", weights, shapes)
    if manifest.has_optimizer:
        _same(directory, "exp_avg", manifest.of_kind("exp_avg"), trained)
        _same(directory, "exp_avg_sq", manifest.of_kind("exp_avg_sq"), trained)
        halves = {name: shape for name, shape in trained.items() if weights[name].dtype in HALF}
        _same(directory, "main", manifest.of_kind("main"), halves)
    known = ("weights/", "exp_avg/", "exp_avg_sq/", "main/", "rng/")
    for name in manifest.tensors:
        if not name.startswith(known):
            raise DataError(directory / MANIFEST, f"{name} is of no known kind ({', '.join(known)})")


def _same(directory: Path, kind: str, stored: dict[str, StoredTensor], expected: dict[str, tuple[int, ...]]) -> None:
    for what, names in (("lacks", expected.keys() - stored.keys()), ("has", stored.keys() - expected.keys())):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            ending = "" if what == "lacks" else ", which the model of its configuration has not"
            raise DataError(directory / MANIFEST, f"{what} {kind}/{min(names)}{more}{ending}")
    for name, shape in expected.items():
        if stored[name].shape != shape:
            problem = f"{kind}/{name} is {list(stored[name].shape)}; the model of its configuration has {list(shape)}"
            raise DataError(directory / MANIFEST, problem)
