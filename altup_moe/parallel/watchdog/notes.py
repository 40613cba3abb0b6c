"""Notes of every collective and exchange of this process, while they are kept (`keep_notes`).

All of torch.distributed's functions, and with them Megatron's, DeepSpeed's and `overlap/`'s, end in methods of
`ProcessGroup` that start work, and in `Work.wait`. Those are wrapped, through the table of patches: code that has
imported a function by name is seen too. (What C++ starts by itself is not; nothing here does.)

A note costs some microseconds; `altup-moe bench watchdog` measures what that is of a step. torch's FlightRecorder keeps
such notes as well, for gloo too since 2.13, but in memory of its own process, which nobody can read when that process
is stopped, and without saying what the process waits for. What it knows better is whether a GPU has begun and ended an
operation; under NCCL it is asked for that (`rank_side.device_trace`). Megatron's straggler detector times GPU
sections, and its in-process restart starts ranks again; neither compares what ranks did.

Times here are the host's. Under gloo the host waits for its collectives, under NCCL the GPU does: `blocked_seconds`
is then nearly 0.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from threading import get_ident, main_thread
from time import monotonic
from types import CodeType, FrameType
from typing import Any

import torch
import torch.distributed as dist

from altup_moe.parallel.patches import original, replace
from altup_moe.parallel.watchdog import ring
from altup_moe.parallel.watchdog.groups import name_of
from altup_moe.parallel.watchdog.ring import CAPACITY, RECORD_BYTES, RECORDS_AT

_PROCESS_GROUP = "torch.distributed.distributed_c10d:ProcessGroup"
_WAIT = "torch.distributed.distributed_c10d:Work.wait"
_FIRST, _SECOND = 0, 1
METHODS: dict[str, tuple[str, int]] = {
    "allreduce": ("all-reduce", _FIRST),
    "allreduce_coalesced": ("all-reduce", _FIRST),
    "allgather": ("all-gather", _SECOND),
    "allgather_coalesced": ("all-gather", _SECOND),
    "all_gather_single": ("all-gather", _SECOND),
    "_allgather_base": ("all-gather", _SECOND),
    "all_gather_single_coalesced": ("all-gather", _SECOND),
    "allgather_into_tensor_coalesced": ("all-gather", _SECOND),
    "reduce_scatter": ("reduce-scatter", _FIRST),
    "reduce_scatter_single": ("reduce-scatter", _SECOND),
    "_reduce_scatter_base": ("reduce-scatter", _SECOND),
    "reduce_scatter_single_coalesced": ("reduce-scatter", _SECOND),
    "reduce_scatter_tensor_coalesced": ("reduce-scatter", _SECOND),
    "alltoall": ("all-to-all", _SECOND),
    "all_to_all_single": ("all-to-all", _SECOND),
    "alltoall_base": ("all-to-all", _SECOND),
    "broadcast": ("broadcast", _FIRST),
    "reduce": ("reduce", _FIRST),
    "gather": ("gather", _SECOND),
    "scatter": ("scatter", _FIRST),
    "send": ("send", _FIRST),
    "recv": ("receive", _FIRST),
    "recv_anysource": ("receive from any rank", _FIRST),
    "barrier": ("barrier", _FIRST),
}
"""Methods of ProcessGroup: the operation, and which argument holds this rank's tensor. No torch has all of them; one
that is missing has another name there, which is here too (`patches.RENAMED`)."""
_PEERS = {ring.OPERATIONS.index("send"), ring.OPERATIONS.index("receive")}
_DTYPES = {getattr(torch, name): index for index, name in enumerate(ring.DTYPES) if hasattr(torch, name)}
_OTHER = len(ring.DTYPES) - 1
_NO_SHAPE = torch.Size()
_INSIDE = ("/torch/", "typing_extensions.py", "/contextlib.py")
"""Parts of the names of files through which a call comes here."""
_NUMBER, _PROGRESS = ring.NUMBER_AT >> 3, ring.PROGRESS_AT >> 3
_WRITERS = [record.pack_into for record in ring.RECORDS]
_Note = tuple[int, int]
"""Where in the memory a record is, and its number."""


class _Stream:
    """Operations of one kind in one group, or with one peer of it. `order`: their sequence number, mutable."""

    __slots__ = ("group", "order", "peer")

    def __init__(self, group: int, peer: int, order: list[int]) -> None:
        self.group, self.peer, self.order = group, peer, order


class Notes:
    """The writer of a ring, and the sums of what it wrote. One a process."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory = memory
        self.blocked = 0.0
        self._number = self._progress = self._step = 0
        self._step_began: float | None = None
        self._longest = 0.0
        self._groups: dict[Any, int] = {}
        self._members: list[tuple[str, tuple[int, ...]]] = []
        self._orders: dict[int, list[int]] = {}
        self._streams: dict[tuple[Any, int, int], _Stream] = {}
        self._places: dict[tuple[CodeType, int], int] = {}
        self._inside: dict[CodeType, bool] = {}
        self.started: dict[int, _Note] = {}
        """By id: works that were not waited for yet."""
        self._main = main_thread().ident
        self._counters, self._ends = memoryview(memory).cast("Q"), memoryview(memory).cast("d")

    def begin(self, operation: int, group: Any, tensor: Any, peer: int, frame: FrameType) -> _Note:
        """Note that an operation starts; what `wait` wants."""
        stream = self._streams.get((group, operation, peer)) or self._new_stream(group, operation, peer)
        counter = stream.order
        counter[0] = sequence = counter[0] + 1
        self._number = number = self._number + 1
        at = RECORDS_AT + number % CAPACITY * RECORD_BYTES
        if tensor is None:
            dtype, shape = 0, _NO_SHAPE
        else:
            dtype, shape = _DTYPES.get(tensor.dtype, _OTHER), tensor.shape
        dims = len(shape)
        if dims > 4:
            shape, dims = shape[:4], 4
        place = self._place(frame)
        _WRITERS[dims](
            self.memory,
            at,
            number,
            sequence,
            stream.group,
            stream.peer,
            operation,
            dtype,
            dims,
            1,
            place,
            monotonic(),
            0.0,
            *shape,
        )
        self._counters[_NUMBER] = number
        return at, number

    def wait(self, wait: Callable[..., Any], work: Any, *args: Any, **kwargs: Any) -> Any:
        """`Work.wait`, noted."""
        note = self.started.pop(id(work), None)
        if note is None:
            return wait(work, *args, **kwargs)
        at, number = note
        self.memory[at + ring.STATE_AT] = 2
        waited = monotonic()
        result = wait(work, *args, **kwargs)
        now = monotonic()
        if self._number - number < CAPACITY:
            self.memory[at + ring.STATE_AT] = 3
            self._ends[(at + ring.ENDED_AT) >> 3] = now
        self._progress += 1
        self._counters[_PROGRESS] = self._progress
        if get_ident() == self._main:
            self.blocked += now - waited
        return result

    def step(self, step: int) -> None:
        """A step is over: its number, and how long the longest one has taken."""
        now = monotonic()
        if self._step_began is not None:
            self._longest = max(self._longest, now - self._step_began)
        self._step_began = now
        self._counters[ring.STEP_AT >> 3] = step
        self._ends[ring.STEP_BEGAN_AT >> 3], self._ends[ring.LONGEST_AT >> 3] = now, self._longest
        self.progress()

    def progress(self, phase: str | None = None) -> None:
        """Something moved on that is no collective; `phase` says what the rank does from now on."""
        if phase is not None:
            ring.write_phase(self.memory, phase)
        self._progress += 1
        self._counters[_PROGRESS] = self._progress

    def close(self) -> None:
        """Let the memory go."""
        self._counters.release()
        self._ends.release()

    def _new_stream(self, group: Any, operation: int, peer: int) -> _Stream:
        index = self._groups.get(group)
        if index is None:
            index = self._groups[group] = len(self._members)
            ranks = tuple(dist.get_process_group_ranks(group))
            self._members.append((name_of(group), ranks))
            self._orders[index] = [0]
            ring.add_text(
                self.memory,
                f"group\t{index}\t{name_of(group)}\t{group.group_name}\t{','.join(map(str, ranks))}",
            )
        if peer == ring.NO_PEER:
            # Collectives of all kinds in a group have one order.
            world_peer, order = peer, self._orders[index]
        else:
            world_peer, order = self._members[index][1][peer], [0]
        stream = self._streams[group, operation, peer] = _Stream(index, world_peer, order)
        return stream

    def _place(self, frame: FrameType) -> int:
        """Number of the line that called torch.distributed."""
        code, inside = frame.f_code, self._inside
        while inside.get(code, True):
            if code not in inside:
                inside[code] = any(part in code.co_filename for part in _INSIDE)
                continue
            if frame.f_back is None:
                break
            frame = frame.f_back
            code = frame.f_code
        return self._places.get((code, frame.f_lasti)) or self._new_place(frame)

    def _new_place(self, frame: FrameType) -> int:
        code = frame.f_code
        place = self._places[code, frame.f_lasti] = len(self._places) + 1
        file = code.co_filename.rpartition("site-packages/")[2]
        if "altup_moe/" in file:
            file = file[file.rfind("altup_moe/") :]
        ring.add_text(self.memory, f"place\t{place}\t{file}:{frame.f_lineno} in {code.co_name}")
        return place


_notes: Notes | None = None


@contextmanager
def keep_notes(memory: mmap.mmap | None = None) -> Iterator[Notes]:
    """Keep notes while open, in memory of a ring, or in this process's own. What is open already stays."""
    global _notes
    if _notes is not None:
        yield _notes
        return
    notes = Notes(memory if memory is not None else ring.new_memory()[0])
    with ExitStack() as stack:
        for method, (operation, argument) in METHODS.items():
            target = f"{_PROCESS_GROUP}.{method}"
            function = original(target)
            if function is not None:
                number = ring.OPERATIONS.index(operation)
                stack.callback(replace, target, replace(target, _noted(notes, function, number, argument)))
        wait = original(_WAIT)
        stack.callback(replace, _WAIT, replace(_WAIT, _noted_wait(notes, wait)))
        _notes = notes
        try:
            yield notes
        finally:
            _notes = None
            notes.close()


def blocked_seconds() -> float:
    """Seconds since the notes began for which the main thread waited for collectives; 0.0 while none are kept."""
    return _notes.blocked if _notes is not None else 0.0


def progress(phase: str | None = None) -> None:
    """Something moved on that is no collective: a file written, a sample made. `phase`: what the rank does now."""
    if _notes is not None:
        _notes.progress(phase)


def step_done(step: int) -> None:
    """A step is over."""
    if _notes is not None:
        _notes.step(step)


def _noted(notes: Notes, function: Any, operation: int, argument: int) -> Any:
    with_peer, begin, started, tensor_type = operation in _PEERS, notes.begin, notes.started, torch.Tensor
    frame_of = sys._getframe

    def noted(group: Any, *args: Any, **kwargs: Any) -> Any:
        tensor = args[argument] if len(args) > argument else None
        while type(tensor) is list or type(tensor) is tuple:
            tensor = tensor[0] if tensor else None
        if not isinstance(tensor, tensor_type):
            tensor = None
        note = begin(operation, group, tensor, args[1] if with_peer else ring.NO_PEER, frame_of(1))
        work = function(group, *args, **kwargs)
        if work is not None:
            if len(started) > CAPACITY:
                # Works that nobody waited for.
                started.clear()
            started[id(work)] = note
        return work

    return wraps(function)(noted)


def _noted_wait(notes: Notes, wait: Any) -> Any:
    noted = notes.wait

    def noted_wait(work: Any, *args: Any, **kwargs: Any) -> Any:
        return noted(wait, work, *args, **kwargs)

    return wraps(wait)(noted_wait)
