"""What `altup-moe bench gpu` is asked to run. Read before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from altup_moe.bench.gpu.checks import CHECKS

if TYPE_CHECKING:
    CheckName = str
else:
    CheckName = Literal[tuple(CHECKS)]


@dataclass(frozen=True)
class GpuBench:
    """Checks and figures of one GPU, each with a time budget.

    Exit code 1: a check failed, took too long or found something wrong; 2: there is no GPU.
    """

    directory: str = "gpu"
    """Directory of gpu.json, gpu.md and cluster.yaml. A call goes on with the checks that gpu.json does not have."""
    minutes: float = 40.0
    """How long this call may take. A check is started if its budget fits into what is left."""
    only: tuple[CheckName, ...] = ()
    """Checks to run; none named is all of them."""
    again: tuple[CheckName, ...] = ()
    """Checks to run anew, although gpu.json has them."""
    rehearse: bool = False
    """Run everything on a CPU with tiny sizes: whether it works, no figure of a GPU."""
    json: bool = False
    """Print gpu.json instead of a table."""
