"""What machine this is, told by a process of its own: the command itself loads no torch and holds no CUDA context."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from typing import Any

from altup_moe.parallel.start_ranks import ROOT, on_ranks, write_result

PACKED_COMMIT = "COMMIT"
"""File that a packed checkout has in place of its history."""
LIBRARIES = ("torch", "triton", "transformers", "megatron-core", "transformer-engine", "liger-kernel", "tile-kernels")
PROBE_SECONDS = 120.0


def find_machine() -> dict[str, Any]:
    """The machine, with JSON's types. Raises RankError: torch could not be loaded."""
    found: dict[str, Any] = on_ranks(1, __name__, timeout=PROBE_SECONDS)[0]
    return {**found, "commit": commit()}


def commit() -> str:
    """The commit of this code, with a + if files differ from it; "" if nothing says it."""
    packed = ROOT / PACKED_COMMIT
    if packed.is_file():
        return packed.read_text(encoding="utf-8").strip()
    head = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return head + "+" * bool(head and changed)


def _output(*command: str) -> str:
    """What a command prints; "" if there is none, or it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """This process's view: card, driver, versions."""
    import torch

    libraries = {"python": platform.python_version(), **_versions()}
    found: dict[str, Any] = {"card": "", "cores": os.cpu_count(), "libraries": libraries}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"card": properties.name, "memory_gib": properties.total_memory / 2**30}
        found |= {"multiprocessors": properties.multi_processor_count, "cuda": torch.version.cuda}
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found["driver"] = driver.splitlines()[0] if driver else ""
        libraries["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


if __name__ == "__main__":
    write_result(sys.argv[1], describe())
