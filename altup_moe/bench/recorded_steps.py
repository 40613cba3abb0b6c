"""Further steps of a stepped model whose spans are recorded, and what they say on all ranks together."""

from __future__ import annotations

from dataclasses import astuple

import torch
import torch.distributed as dist

from altup_moe.bench.stepper import Stepper
from altup_moe.parallel.topology import Topology
from altup_moe.timeline.overlap import OverlapReport, median_overlap, overlap_by_step
from altup_moe.timeline.spans import Recording, record, step
from altup_moe.train.profile import watch_layers


def recorded_steps(stepper: Stepper, steps: int) -> Recording:
    """Spans of so many steps of this rank. Collective: all ranks begin each step together."""
    with record(stepper.topology.rank) as recording:
        watch_layers(stepper.chunks)
        for _ in range(steps):
            dist.barrier()
            with step():
                stepper.step()
    return recording


def report_of_all(recording: Recording, topo: Topology) -> OverlapReport:
    """The medians over all steps of all ranks. Collective."""
    own = torch.tensor([astuple(report) for report in overlap_by_step(recording)], dtype=torch.float64)
    every = [torch.empty_like(own) for _ in range(topo.world_size)]
    dist.all_gather(every, own)
    return median_overlap([OverlapReport(*figures) for figures in torch.cat(every).tolist()])
