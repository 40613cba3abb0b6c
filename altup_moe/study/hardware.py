"""The machine that trains or measures a row, which need not be the one that writes its line."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

from altup_moe.parallel.machine import processor, usable_cores


def machine_here() -> dict[str, Any]:
    """What `records.Hardware` says of the machine of this process: processor, cores, torch, system."""
    return {
        "processor": processor(),
        "cores": usable_cores(),
        "torch": importlib.metadata.version("torch"),
        "system": platform.platform(),
    }
