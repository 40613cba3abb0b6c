"""Peak memory of steps. Its comparison with the planner is made where the planner is (`planned.compared`)."""

from __future__ import annotations

import tempfile
from pathlib import Path

from altup_moe.bench.gpu.results import Found
from altup_moe.bench.gpu.sizes import SIZES, Sizes, memory_runs
from altup_moe.bench.gpu.stepped import stepped

STEPS = 3


def memory(sizes: Sizes) -> Found:
    """Bytes by run, of a fresh process each: on a GPU what torch's allocator held, on a CPU the whole process."""
    peaks = {}
    for name, run in memory_runs(sizes.memory).items():
        with tempfile.TemporaryDirectory() as place:
            peaks[name] = stepped(run, STEPS, Path(place) / "run")[0].peak * 2**30
    return Found(data={"peaks": peaks, "sizes": name_of(sizes)})


def name_of(sizes: Sizes) -> str:
    """Its name in `SIZES`, by which results are read again."""
    return next(name for name, known in SIZES.items() if known is sizes)
