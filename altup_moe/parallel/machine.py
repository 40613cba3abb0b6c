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


def memory_bytes() -> int | None:
    """Bytes of memory that this process may use: of its GPU where torch has one, else of the machine or its cgroup;
    None where the system does not say.
    """
    import torch

    if torch.cuda.is_available():
        local = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        return int(torch.cuda.get_device_properties(local).total_memory)
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    return min([machine, *_cgroup_limits()])


def _cgroup_limits() -> list[int]:
    """Limits of the process's cgroup (version 2) and of those around it, bytes."""
    try:
        own = Path("/proc/self/cgroup").read_text(encoding="utf-8").rpartition("::")[2].strip()
    except OSError:
        return []
    found, root = [], Path("/sys/fs/cgroup")
    directory = root / own.lstrip("/")
    for level in (directory, *directory.parents):
        if root not in (level, *level.parents):
            break
        try:
            found.append(int((level / "memory.max").read_text()))
        except (OSError, ValueError):
            continue  # "max", or the root
    return found


def device_name() -> str:
    """Name of the GPU that torch uses; `cpu` without one."""
    import torch  # whoever only asks for the processor need not load it

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
