"""Options of `altup-moe doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from altup_moe.doctor.network import MASTER_PORT


@dataclass(frozen=True)
class DoctorOptions:
    """Versions, devices, network, disk and a collective on two ranks: could a run start here?"""

    run_dir: Path = Path("runs")
    """Directory of a run to be (log.run_dir): its disk is measured with a file of 64 MiB, removed again."""
    port: int = MASTER_PORT
    """Port where ranks of several nodes would meet on this machine."""
    json: bool = False
    """Print one JSON object instead of text."""
