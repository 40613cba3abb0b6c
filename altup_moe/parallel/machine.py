"""What this process runs on: processor, usable cores, device."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Name of the processor as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device_name() -> str:
    """Name of the GPU that torch uses; `cpu` without one."""
    import torch  # whoever only asks for the processor need not load it

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
