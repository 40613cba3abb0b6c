"""Before any process group exists: can this rank write the run's files, is there room for a checkpoint, and a compiler?

A file is really made and removed: permissions alone do not know of read-only mounts, quotas and other users' rules.
"""

from __future__ import annotations

import os
import platform
import shutil
import stat
from pathlib import Path

from altup_moe.checkpoint.store import SPARE_BYTES
from altup_moe.config import RunConfig
from altup_moe.config.errors import ConfigError, UserError
from altup_moe.config.os_errors import reason
from altup_moe.config.run_directory import (
    checkpoints_dir,
    config_file,
    metrics_file,
    profile_dir,
    removed_metrics_file,
    routing_file,
    samples_file,
    starts_file,
    tensorboard_dir,
    tokenizer_dir,
)
from altup_moe.parallel.counts import count_parameters


def check_writable(config: RunConfig, with_room: bool = True) -> None:
    """Raise UserError, with the path, for what a run could not write. Each rank calls it: all write checkpoints.

    Args:
        with_room: also ask for the space of one checkpoint.
    """
    run_dir = Path(config.log.run_dir)
    directories = [run_dir, checkpoints_dir(run_dir), tokenizer_dir(run_dir)]
    directories += [tensorboard_dir(run_dir)] if config.log.tensorboard else []
    directories += [profile_dir(run_dir)] if config.log.profile_steps else []
    for place in dict.fromkeys(existing_directory(path) for path in directories):
        _try_to_write(place)
    metrics = metrics_file(run_dir)
    named = [metrics, removed_metrics_file(metrics), config_file(run_dir)]
    for file in (*named, starts_file(run_dir), routing_file(run_dir), samples_file(run_dir)):
        _check_file(file)
    if with_room:
        check_room(existing_directory(checkpoints_dir(run_dir)), checkpoint_bytes(config))


def check_compiler(config: RunConfig) -> None:
    """Raise ConfigError where code is to be compiled and there is no compiler.

    torch's own search: what CXX names, or g++. On a GPU Triton needs one too, for what launches its kernels.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is not None:
        return
    missing = f"needs a C++ compiler, and there is no {compiler} (CXX names another one); "
    if config.train.compile:
        raise ConfigError("train.compile", True, missing + "false would fit")
    if config.altup.width > 1 and config.altup.kernel == "compile":
        raise ConfigError("altup.kernel", "compile", missing + "torch would fit")


def check_room(place: Path, size: int) -> None:
    """Raise UserError unless a checkpoint of `size` bytes fits on the disk of a directory, as a save asks for it."""
    free, needed = shutil.disk_usage(place).free, size + SPARE_BYTES
    if free < needed:
        figures = f"{free / 1e6:,.1f} MB are free, one checkpoint needs {needed / 1e6:,.1f} MB"
        raise UserError(f"{place}: {figures}; make room, or name another log.run_dir")


def checkpoint_bytes(config: RunConfig) -> int:
    """Size of a checkpoint's tensors: weights, both moments in fp32, and of bf16 weights an fp32 copy.

    Adafactor's factored moments are small: counted as none.
    """
    half = config.train.precision == "bf16"
    moments = 8 if config.optim.optimizer == "adamw" else 0
    return count_parameters(config).total * ((2 if half else 4) + moments + (4 if half else 0))


def existing_directory(path: Path) -> Path:
    """The path, or the nearest directory above it that exists. Raises UserError for anything else in the way."""
    for place in (path, *path.absolute().parents):
        try:
            mode = place.stat().st_mode
        except FileNotFoundError:
            if place.is_symlink():
                raise UserError(f"{place}: is a link to {os.readlink(place)}, which does not exist") from None
            continue
        except NotADirectoryError:
            continue  # the file in the way is further up
        except OSError as error:
            raise UserError(f"{place}: {reason(error)}") from None
        if not stat.S_ISDIR(mode):
            raise UserError(f"{place}: is a file; a directory would fit")
        return place
    raise AssertionError("the root directory exists")


def _try_to_write(directory: Path) -> None:
    probe = directory / f".preflight.{platform.node()}.{os.getpid()}"
    try:
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: nothing can be written there: {reason(error)}") from None


def _check_file(file: Path) -> None:
    """A file that is there can be appended to."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        if file.is_symlink():
            raise UserError(f"{file}: is a link to {os.readlink(file)}, which does not exist") from None
        return
    except OSError as error:
        raise UserError(f"{file}: {reason(error)}") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UserError(f"{file}: is no plain file")
    finally:
        os.close(descriptor)
