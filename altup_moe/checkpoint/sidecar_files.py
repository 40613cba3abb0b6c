"""What stands beside a checkpoint in its run directory and goes along when a tool makes a new run of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from altup_moe.config.files import write_text
from altup_moe.config.run_directory import METRICS, TOKENIZER, checkpoints_dir


def sidecar_files(checkpoint: Path) -> list[str]:
    """Names of what is there to bring along; none for a checkpoint that lies outside a run directory."""
    run_dir = checkpoint.parent.parent
    if checkpoint.parent != checkpoints_dir(run_dir):
        return []
    return [name for name in (METRICS, TOKENIZER) if (run_dir / name).exists()]


def copy_sidecar_files(checkpoint: Path, step: int, new: Path) -> None:
    """Copy a checkpoint's companions into a new run directory, metrics up to the checkpoint's step."""
    for name in sidecar_files(checkpoint):
        old = checkpoint.parent.parent / name
        if name == TOKENIZER:
            shutil.copytree(old, new / name)
        else:
            lines = old.read_text(encoding="utf-8").splitlines()
            write_text(new / name, "".join(f"{line}\n" for line in lines if _done(line, step)))


def _done(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
