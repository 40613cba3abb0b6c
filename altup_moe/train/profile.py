"""Recording a few steps of a run: a trace and a picture in the run directory, and what was hidden on the console.

Ranks write their spans as JSON and rank 0 puts them together, so that nothing is pickled. The model is watched from
outside; exchange, mixing and routing report their own spans.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from megatron.core.transformer.transformer_layer import TransformerLayer
from torch import nn

from altup_moe.config.os_errors import reason
from altup_moe.config.output import complain
from altup_moe.parallel.control_collectives import first_problem
from altup_moe.parallel.topology import Topology
from altup_moe.timeline.chrome import write_trace
from altup_moe.timeline.overlap import OverlapReport, overlap, report_table
from altup_moe.timeline.picture import write_picture
from altup_moe.timeline.records import WARM_UP, Recording, read_recording, write_recording
from altup_moe.timeline.spans import record, step
from altup_moe.timeline.watch import watch


def watch_layers(chunks: Sequence[nn.Module]) -> None:
    """Attention and experts of every layer as spans, while something records.

    Not whole MoE layers: they wait for the exchange, which is no work.
    """
    layers: list[Any] = [m for chunk in chunks for m in chunk.modules() if isinstance(m, TransformerLayer)]
    watch([layer.self_attention for layer in layers], "attention")
    watch([layer.mlp.experts for layer in layers if layer.is_moe_layer], "experts")
    watch([layer.mlp for layer in layers if not layer.is_moe_layer], "mlp")


def gather(recording: Recording, directory: Path, topology: Topology) -> list[Recording] | None:
    """All ranks' recordings on rank 0, through files in a directory that all see; None elsewhere.

    Raises:
        OSError: on every rank, if one cannot write.
    """
    problem = None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_recording(directory / f"rank_{topology.rank}.json", recording)
    except OSError as error:
        problem = [error.errno, reason(error)]
    if (first := first_problem(problem, topology.device)) is not None:
        raise OSError(*first, str(directory))
    if topology.rank != 0:
        return None
    return [read_recording(directory / f"rank_{rank}.json") for rank in range(topology.world_size)]


class Profile:
    """Steps `WARM_UP` to `WARM_UP + steps` of this process; with 0 steps, nothing."""

    def __init__(self, steps: int, directory: Path, chunks: Sequence[nn.Module], topology: Topology) -> None:
        self._left, self._taken = steps, 0
        self._directory, self._chunks, self._topology = directory, chunks, topology
        self._open: ExitStack | None = None
        self._recording: Recording | None = None

    @contextmanager
    def step(self) -> Iterator[None]:
        """One training step is taken inside."""
        self._taken += 1
        if self._left == 0 or self._taken <= WARM_UP:
            yield
            return
        if self._open is None:
            self._open = ExitStack()
            self._recording = self._open.enter_context(record(self._topology.rank))
            watch_layers(self._chunks)
        with step():
            yield
        self._left -= 1

    def settle(self) -> OverlapReport | None:
        """Write the profile if the last step was its last: between steps, so that no step's time has it in it.

        Returns:
            Its figures, on rank 0, once.
        """
        return self.close() if self._left == 0 else None

    def close(self) -> OverlapReport | None:
        """End the recording and write what there is; every rank calls it at the same step. Returns as `settle`."""
        if self._open is None:
            return None
        self._open.close()
        self._open, self._left = None, 0
        assert self._recording is not None
        try:
            recordings = gather(self._recording, self._directory, self._topology)
        except OSError as error:
            self._not_written(error)
            return None
        if recordings is None:
            return None
        found = overlap(recordings)
        print(report_table(found))
        try:
            write_trace(self._directory / "trace.json", recordings)
            write_picture(self._directory / "step.png", recordings)
        except OSError as error:
            self._not_written(error)
            return found
        print(f"profile of {len(recordings[0].steps)} step(s): {self._directory}/trace.json, step.png", flush=True)
        return found

    def _not_written(self, error: OSError) -> None:
        if self._topology.rank == 0:
            complain(f"{self._directory}: {reason(error)}; training goes on without its profile")
