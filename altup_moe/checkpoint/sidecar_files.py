"""Files beside a checkpoint in its run directory that a tool copies when it makes a new run of the checkpoint."""

from __future__ import annotations

import shutil
from pathlib import Path

from altup_moe.config.files import write_bytes
from altup_moe.config.metrics_lines import split_metrics
from altup_moe.config.run_directory import METRICS, ROUTING, STARTS, TOKENIZER, checkpoints_dir


def sidecar_files(checkpoint: Path) -> list[str]:
    """Names of the sidecar files and folders that exist; none for a checkpoint outside a run directory."""
    run_dir = checkpoint.parent.parent
    if checkpoint.parent != checkpoints_dir(run_dir):
        return []
    return [name for name in (METRICS, ROUTING, STARTS, TOKENIZER) if (run_dir / name).exists()]


def copy_sidecar_files(checkpoint: Path, step: int, new: Path) -> None:
    """Copy a checkpoint's sidecar files into the run directory `new`; of JSON lines, readable ones up to `step`."""
    for name in sidecar_files(checkpoint):
        old = checkpoint.parent.parent / name
        if name == TOKENIZER:
            shutil.copytree(old, new / name)
        else:
            lines = split_metrics(old.read_bytes())
            kept = [line.raw + b"\n" for line in lines if line.step is not None and line.step <= step]
            write_bytes(new / name, b"".join(kept))
