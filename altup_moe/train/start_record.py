"""starts.jsonl: one line for each start of a run. `altup-moe show` reads hardware, layout and resumes from it."""

from __future__ import annotations

import errno
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from altup_moe.checkpoint.layout import describe_layout
from altup_moe.checkpoint.library_versions import library_versions
from altup_moe.config import RunConfig
from altup_moe.config.os_errors import reason
from altup_moe.config.output import complain
from altup_moe.parallel.machine import device_name, processor, usable_cores


def start_record(
    config: RunConfig, world_size: int, step: int, checkpoint: str | None, load_seconds: float
) -> dict[str, Any]:
    """A start as a JSON-serialisable record.

    Args:
        step: steps that were done before. checkpoint: name of the one it goes on from; None for a new run.
        load_seconds: from the ranks' first meeting until the model was built and the checkpoint verified and read.
    """
    return {
        "step": step,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "checkpoint": checkpoint,
        "load_seconds": round(load_seconds, 3),
        "layout": describe_layout(config.parallel, world_size),
        "ranks": world_size,
        "device": device_name(),
        "processor": processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "libraries": library_versions(),
    }


def append_start(path: Path, record: dict[str, Any]) -> None:
    """Add a line; one that a crash has cut short before stays a line of its own. A full disk is said."""
    try:
        with open(path, "ab+", buffering=0) as file:
            # In mode a+ all writes go to the end.
            end = file.seek(0, os.SEEK_END)
            cut_short = end and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            line = (b"\n" if cut_short else b"") + json.dumps(record).encode() + b"\n"
            if file.write(line) < len(line):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError as error:
        complain(f"{path}: {reason(error)}; training goes on without a line of this start")
