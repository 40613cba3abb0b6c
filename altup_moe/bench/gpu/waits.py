"""How many times a training step makes the host wait for the GPU, and where; a CPU that plays one rehearses it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from altup_moe.bench.gpu.host_waits import HostWaits, counted, pretended
from altup_moe.bench.gpu.results import Figure, Found
from altup_moe.bench.gpu.sizes import Sizes, run_of
from altup_moe.bench.gpu.stepped import batches
from altup_moe.config import AltUpConfig, MoEConfig, RunConfig
from altup_moe.moe import torch_backend
from altup_moe.moe.grouped import How
from altup_moe.parallel.topology import topology
from altup_moe.train import loop
from altup_moe.train.batches_ahead import BatchesAhead
from altup_moe.train.run import Run, build_run

KNOWN = {
    "altup_moe/train/step.py:_read": (
        "one a step",
        "loss, gradient norm and routes, in one copy, before the update: whether the step is taken depends on them",
    ),
    "altup_moe/train/step.py:_label_weight": (
        "one a step of several ranks",
        "whether any rank's tokens are no ids, before the model sees them; the device has just been waited for",
    ),
    "altup_moe/parallel/control_collectives.py:any_rank": (
        "one a step of several ranks",
        "whether any rank was told to stop: all of them stop after the same step",
    ),
    "altup_moe/moe/megatron_backend.py:_maybe_dtoh_and_synchronize": (
        "one a layer with experts, micro-batch (half of one) and forward pass; on one rank none with `grouped_mm`",
        "how many rows go to each rank and expert: the exchange and the loop over experts need them on the host",
    ),
    "altup_moe/train/adafactor.py:_sizes": (
        "one a step and optimizer, with Adafactor",
        "how large each tensor is, all in one copy: its step is in proportion",
    ),
}
"""Where a step may make the host wait: how many times, and why. Everything else is a fault."""
SETTLED = 2
"""Steps before the one that is counted: what is only done once is done."""
NOT_REHEARSED = "Whether torch for CUDA waits elsewhere too: not rehearsed. The CPU plays a GPU, by its rules."


def waits(sizes: Sizes) -> Found:
    """Waits of a step of one rank, plain and with experts, and their places."""
    found = Found(notes=[] if sizes.device == "cuda" else [NOT_REHEARSED])
    for name, (run, how, at_most) in wait_runs(sizes).items():
        counts = waits_of_a_step(run, how)
        found.figures.append(Figure(f"{name}: waits of a step", sum(counts.count.values()), at_most=at_most))
        strange = sum(times for place, times in counts.count.items() if place.where not in KNOWN)
        found.figures.append(Figure(f"{name}: of them where none is known", strange, at_most=0))
        found.notes += [f"{name}: {line}" for line in wait_lines(counts)]
    return found


def wait_runs(sizes: Sizes) -> dict[str, tuple[RunConfig, How, int]]:
    """By name: a run of one rank, how it multiplies its experts, and how many waits are needed."""
    small = sizes.small
    dense = replace(run_of(small), moe=MoEConfig())
    wide = replace(run_of(small, 2), moe=replace(run_of(small, 2).moe, backend="torch"))
    per_layer = 1 + small.layers
    # What a compiled kernel for CPUs computes is seen by nobody. On a GPU they are Triton's.
    around_branches = AltUpConfig(4, "mhc", level="branch", kernel="auto" if sizes.device == "cuda" else "torch")
    return {
        "K = 1": (dense, "loop", 1),
        "K = 2, grouped experts": (wide, "grouped_mm", 1),
        "K = 2, experts in a loop": (wide, "loop", per_layer),
        "K = 2, experts one by one (megatron)": (run_of(small, 2), "loop", per_layer),
        "K = 4, mhc around branches": (replace(wide, altup=around_branches), "grouped_mm", 1),
    }


def wait_lines(counts: HostWaits) -> Iterator[str]:
    """A line for each place, the most frequent first."""
    for place, times in counts.count.most_common():
        file, _, function = place.where.partition(":")
        why = KNOWN.get(place.where, ("", "not known"))[1]
        yield f"{times} x {file}:{counts.lines[place]} {function} ({place.through}): {why}"


class _Counted(Exception):
    """Enough was counted."""


class _BetweenSteps:
    """In the place of `StopSignal`: the loop asks it once a step. Counts from one question to the next."""

    def __init__(self) -> None:
        self.waits: HostWaits | None = None
        self.asked = 0
        self._open = ExitStack()

    @property
    def caught(self) -> bool:
        """No signal. Raises `_Counted` at the end."""
        self.asked += 1
        if self.asked == SETTLED:
            self.waits = self._open.enter_context(counted())
        elif self.asked > SETTLED:
            self.close()
            raise _Counted
        return False

    def close(self) -> None:
        """Count no more."""
        self._open.close()


def waits_of_a_step(config: RunConfig, how: How | None = None) -> HostWaits:
    """Take some steps of a run in the training loop, and count one: from the end of a step to the end of the next.

    In the world of this process, or alone. Nothing is validated, recorded or saved in that step.

    Args:
        how: to multiply experts of the `torch` backend; None is as it chooses.
    """
    config = replace(config, train=replace(config.train, steps=1000, eval_interval=0, stop_after=None))
    between: Any = _BetweenSteps()
    with ExitStack() as stack:
        topo = stack.enter_context(topology(config.parallel))
        if topo.device.type != "cuda":
            topo = replace(topo, device=stack.enter_context(pretended()))
        with _multiplied(how):
            run = build_run(config, topo, None)
        _give_batches(run)
        stack.callback(between.close)
        with suppress(_Counted):
            loop._steps(run, [], between)
    found: HostWaits = between.waits
    return found


def _give_batches(run: Run) -> None:
    size = run.config.train.global_batch_size
    run.ahead = BatchesAhead(lambda start: batches(run.config, start // size, run.topology), run.topology.device)
    run.samples = SimpleNamespace(train=None)  # type: ignore[assignment]


@contextmanager
def _multiplied(how: How | None) -> Iterator[None]:
    """Experts of models that are built here multiply like this."""
    before = torch_backend.choose
    if how is not None:
        chosen = how
        torch_backend.choose = lambda *_: chosen
    try:
        yield
    finally:
        torch_backend.choose = before
