"""Train a run as the command does, and read what a run has written, without a process group."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from altup_moe.api.configuration import check_config
from altup_moe.config import RunConfig
from altup_moe.config.expected_run import check_run
from altup_moe.config.load import load_config
from altup_moe.config.metrics_lines import read_metrics
from altup_moe.config.run_directory import checkpoints_dir, config_file, metrics_file

if TYPE_CHECKING:
    import numpy as np
    import torch

    from altup_moe.checkpoint.manifest import Manifest, StoredTensor
    from altup_moe.train.metrics import StepMetrics


def train(config: RunConfig, until: Callable[[StepMetrics], bool] | None = None) -> RunReader:
    """Train a configuration to its end, as `altup-moe train` does: console, records, validations, checkpoints, resume.

    Every rank calls it. For a loop of your own there is `session`.

    Args:
        until: rank 0 asks it after every step; when it is true, the run stops, saved.

    Returns:
        The run directory; `RunReader.complete` is False if a signal or `until` stopped the run early.

    Raises:
        ConfigError, DataError, UserError: as the command's one line on standard error.

    Examples:
        >>> run = train(load_config("quickstart", {"parallel.expert": 1}))  # doctest: +SKIP
        >>> run.metrics()[-1]["valid_loss"]  # doctest: +SKIP
    """
    check_config(config)
    from altup_moe.train import loop

    loop.train(config, until)
    return RunReader(Path(config.log.run_dir))


def read_run(path: str | Path) -> RunReader:
    """A run directory, to read.

    Raises:
        ConfigError: it is no run directory.

    Examples:
        >>> [line["loss"] for line in read_run("runs/quickstart").metrics()]  # doctest: +SKIP
    """
    check_run(Path(path), "show", key="path", trained=False)
    return RunReader(Path(path))


def read_checkpoint(path: str | Path) -> CheckpointReader:
    """A checkpoint, to read, whatever layout wrote it. It needs no process group.

    `CheckpointReader.torch` alone loads torch.

    Args:
        path: a checkpoint, or a run directory (its newest one).

    Raises:
        UserError: there is none. DataError: a file is missing, has another size or a damaged header.

    Examples:
        >>> with read_checkpoint("runs/quickstart") as checkpoint:  # doctest: +SKIP
        ...     table = checkpoint.numpy("model.embed_tokens.weight")  # [vocabulary, features]
    """
    return CheckpointReader(path)


@dataclass(frozen=True)
class RunReader:
    """What a run has written into its directory. Files are read when they are asked for: the run may still train.

    Args:
        path: the run directory.
    """

    path: Path

    @property
    def config(self) -> RunConfig:
        """The run's resolved configuration. Raises UserError if it cannot be read."""
        return load_config(config_file(self.path))

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, one mapping a step: ``step``, ``loss`` (nats per token), ``grad_norm``, ...

        Fields that a step does not have (a validation, experts) are missing; a number that was not finite is None.
        Lines that cannot be read are left out. ``pandas.DataFrame(run.metrics())`` is a table.
        """
        return read_metrics(metrics_file(self.path))

    def checkpoints(self) -> list[Path]:
        """Directories of the complete checkpoints, oldest first; for `read_checkpoint` and `Session.load`."""
        from altup_moe.checkpoint.store import complete_checkpoints

        return complete_checkpoints(checkpoints_dir(self.path))

    @property
    def latest(self) -> Path | None:
        """Directory of the newest checkpoint; None before the first. Raises DataError if `latest` is damaged."""
        from altup_moe.checkpoint.store import latest_checkpoint

        return latest_checkpoint(self.path)

    @property
    def complete(self) -> bool:
        """Whether all train.steps are done and saved."""
        newest = self.latest
        return newest is not None and _step(newest) >= self.config.train.steps


class CheckpointReader:
    """An open checkpoint, made by `read_checkpoint`. Close it, or use it in a ``with`` block.

    Tensors are whole, whatever ranks wrote them. A name is that of a weight, ``model.norm.weight``, or has a kind in
    front: ``exp_avg/model.norm.weight`` (`tensors` lists them).
    """

    def __init__(self, path: str | Path) -> None:
        """See `read_checkpoint`."""
        from altup_moe.checkpoint.source import Checkpoint
        from altup_moe.checkpoint.store import find_checkpoint

        self._checkpoint = Checkpoint(find_checkpoint(Path(path)))

    @property
    def path(self) -> Path:
        """The checkpoint's directory."""
        return self._checkpoint.directory

    @property
    def manifest(self) -> Manifest:
        """Step, counters, libraries, configuration, and the files and tensors."""
        return self._checkpoint.manifest

    @property
    def config(self) -> RunConfig:
        """The configuration of the run that wrote it."""
        return self._checkpoint.config

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every stored tensor by KIND/NAME: ``shape``, ``dtype`` (F32, BF16, ...), and where its pieces lie."""
        return self.manifest.tensors

    def names(self, kind: str = "weights") -> list[str]:
        """Global names of a kind: weights, exp_avg, exp_avg_sq, main (fp32 copies of half-precision weights), rng."""
        return sorted(self.manifest.of_kind(kind))

    def numpy(self, name: str) -> np.ndarray:
        """A whole tensor; bf16, which numpy does not have, as float32 of the same values.

        Raises:
            KeyError: there is no such tensor.
        """
        import numpy as np

        stored = self._stored(name)
        items = self._checkpoint.read(stored)
        dtype = self.tensors[stored].dtype
        if dtype == "BF16":
            return (items.astype(np.uint32) << 16).view(np.float32)
        kinds = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "U8": "u1", "BOOL": "?"}
        return items.view(np.dtype(kinds[dtype]))

    def torch(self, name: str) -> torch.Tensor:
        """A whole tensor on the CPU, in its stored dtype. Raises KeyError as `numpy`."""
        from altup_moe.checkpoint.tensors import load_tensor

        return load_tensor(self._checkpoint, self._stored(name))

    def verify(self) -> None:
        """Compare every file with the hash it was saved with. Raises DataError naming the first that differs."""
        self._checkpoint.verify()

    def close(self) -> None:
        """Close its files."""
        self._checkpoint.close()

    def __enter__(self) -> CheckpointReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stored(self, name: str) -> str:
        for stored in (f"weights/{name}", name):
            if stored in self.tensors:
                return stored
        raise KeyError(f"{self.path} has no tensor {name}; names() lists {len(self.names())} weights")


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step_").partition(".")[0])
