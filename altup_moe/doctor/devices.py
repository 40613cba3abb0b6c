"""GPUs, cores and memory of this machine, and the limits of a process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from altup_moe.config.units import GIB
from altup_moe.doctor.report import Finding, FindingState

MIN_SHARED = 64 * 2**20
"""NCCL and data workers fail if /dev/shm has no more bytes than this, which is Docker's default."""
MIN_FILES = 1024


def gpus() -> list[Finding]:
    """One finding for each GPU; one that says so if there is none."""
    import torch

    if not torch.cuda.is_available():
        built = f"; torch {torch.__version__} has " + (
            f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
        )
        return [Finding("devices", "GPUs", f"none, ranks compute on CPUs{built}", "note", 0)]
    found = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        properties = torch.cuda.get_device_properties(index)
        text = (
            f"{properties.name}, {total / GIB:.1f} GiB ({free / GIB:.1f} free), sm_{properties.major}{properties.minor}"
        )
        state: FindingState = "ok" if free > 0.5 * total else "warning"
        found.append(
            Finding("devices", f"GPU {index}", text, state, {"name": properties.name, "bytes": total, "free": free})
        )
    return found


def cpu_cores() -> Finding:
    """Cores of the machine, and how many of them this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("devices", "CPU cores", f"{usable} usable of {os.cpu_count()}", "ok", usable)


def system_memory(meminfo: Path = Path("/proc/meminfo")) -> Finding:
    """Total and available memory of the machine."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        total, free = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError, ValueError):
        return Finding("devices", "memory", "unknown: no /proc/meminfo", "note")
    state: FindingState = "ok" if free > GIB else "warning"
    text = f"{total / GIB:.1f} GiB, {free / GIB:.1f} available"
    return Finding("devices", "memory", text, state, {"bytes": total, "available": free})


def shared_memory(directory: Path = Path("/dev/shm")) -> Finding:
    """Size of the file system that holds shared memory."""
    try:
        usage = shutil.disk_usage(directory)
    except OSError:
        return Finding("devices", "shared memory", f"{directory} is missing", "warning")
    enough = usage.free > MIN_SHARED
    text = f"{directory}: {usage.total / GIB:.2f} GiB, {usage.free / GIB:.2f} free"
    hint = "" if enough else "; more than 64 MiB would fit (docker run --shm-size 8g)"
    return Finding("devices", "shared memory", text + hint, "ok" if enough else "warning", usage.free)


def limits() -> list[Finding]:
    """Limits of this process (`ulimit`): open files, processes, locked memory."""
    try:
        import resource
    except ImportError:
        return []
    names = {
        "open files": ("RLIMIT_NOFILE", "-n"),
        "processes": ("RLIMIT_NPROC", "-u"),
        "locked": ("RLIMIT_MEMLOCK", "-l"),
    }
    found = []
    for name, (key, flag) in names.items():
        soft, hard = (None if n == resource.RLIM_INFINITY else n for n in resource.getrlimit(getattr(resource, key)))
        low = key == "RLIMIT_NOFILE" and soft is not None and soft < MIN_FILES
        shown = ["unlimited" if limit is None else str(limit) for limit in (soft, hard)]
        text = f"ulimit {flag}: {shown[0]}, at most {shown[1]}"
        hint = f"; {MIN_FILES} or more would fit" if low else ""
        found.append(Finding("devices", name, text + hint, "warning" if low else "ok", soft))
    return found
