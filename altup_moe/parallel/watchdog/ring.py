"""The notes of one rank: a ring of fixed-size records in memory that another process maps as well.

The memory outlives what stops the rank (SIGSTOP, a thread that holds Python's lock for ever, kill -9): whoever maps it
reads the last `CAPACITY` operations. One process writes, without locks; the newest record may be half written.

    header (4 KiB)   `Header`: counters, the step, what the rank does
    texts (256 KiB)  lines that records refer to by number: groups and their ranks, places in the source
    records          `Record`, 64 bytes each; record n lies at n modulo CAPACITY

This module knows neither torch nor megatron.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass
from enum import IntEnum

CAPACITY = 4096
"""Records that are kept."""
HEADER_BYTES, TEXT_BYTES, RECORD_BYTES = 4096, 262144, 64
SIZE = HEADER_BYTES + TEXT_BYTES + CAPACITY * RECORD_BYTES
RECORDS_AT = HEADER_BYTES + TEXT_BYTES
RECORDS = [struct.Struct(f"<QIHhBBBBIdd{dims}I") for dims in range(5)]
"""number, sequence, group, peer, operation, dtype, dimensions, state, place, begun, ended, sizes; by dimensions."""
STATE_AT, ENDED_AT = 19, 32
NO_PEER = -1
"""A record's peer where the operation has none: all ranks of the group take part."""

OPERATIONS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "broadcast",
    "reduce",
    "gather",
    "scatter",
    "send",
    "receive",
    "receive from any rank",
    "barrier",
)
DTYPES = (
    "none",
    "float32",
    "bfloat16",
    "float16",
    "float64",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "other",
)

_MAGIC = b"altup-1\0"
_HEADER = struct.Struct("<8sIIQQQdddd64s")
_COUNTER, _FLOAT = struct.Struct("<Q"), struct.Struct("<d")
_TEXT_USED_AT, NUMBER_AT, PROGRESS_AT, STEP_AT, STEP_BEGAN_AT, LONGEST_AT = 12, 16, 24, 32, 40, 48
_PHASE_AT = 72


class State(IntEnum):
    """Of an operation: started and running beside the rank's other work, waited for, over."""

    STARTED = 1
    WAITED_FOR = 2
    ENDED = 3


@dataclass(frozen=True)
class Group:
    """A process group: what it is for, its ranks in the world, and torch's name, which is the same on all of them."""

    name: str
    ranks: tuple[int, ...]
    key: str = ""


@dataclass(frozen=True)
class Record:
    """One operation of a rank.

    ``number``: of all operations of the rank, from 1. ``sequence``: of those of its kind in its group (with the same
    peer, for sends and receives), from 1. ``peer``: rank in the world; `NO_PEER`. ``shape``: at most four sizes.
    ``place``: who called. ``begun``, ``ended``: `time.monotonic` seconds; 0 is not yet.
    """

    number: int
    sequence: int
    group: Group
    operation: str
    peer: int
    dtype: str
    shape: tuple[int, ...]
    place: str
    state: State
    begun: float
    ended: float

    @property
    def what(self) -> str:
        """The operation, its type and shape: ``all-reduce of float32 [4, 8]``."""
        of = "" if self.dtype == "none" else f" of {self.dtype} {list(self.shape)}"
        other = {"send": f" to rank {self.peer}", "receive": f" from rank {self.peer}"}.get(self.operation, "")
        return f"{self.operation}{of}{other}"


@dataclass(frozen=True)
class Header:
    """A rank's counters.

    ``progress``: anything that moved on. ``longest_step``: seconds. ``step_began``: when the last one ended (0 before),
    ``opened``: `time.monotonic` seconds. ``wall``: what to add to those for the time of day.
    ``phase``: what the rank does, in words.
    """

    number: int
    progress: int
    step: int
    step_began: float
    longest_step: float
    wall: float
    opened: float
    phase: str


def new_memory(shared: bool = False) -> tuple[mmap.mmap, int | None]:
    """Memory of a ring, with its header. Shared, it has no name in any directory, and ends with its last user.

    Returns:
        The memory, and the file descriptor for another process if it is to be shared.
    """
    descriptor = os.memfd_create("altup-moe-notes") if shared else None
    if descriptor is not None:
        os.ftruncate(descriptor, SIZE)
    memory = mmap.mmap(-1 if descriptor is None else descriptor, SIZE)
    now = time.monotonic()
    _HEADER.pack_into(memory, 0, _MAGIC, CAPACITY, 0, 0, 0, 0, 0.0, 0.0, time.time() - now, now, b"starting")
    return memory, descriptor


def write_phase(memory: mmap.mmap, phase: str) -> None:
    """Say what the rank does, in at most 63 bytes."""
    memory[_PHASE_AT : _PHASE_AT + 64] = phase.encode()[:63].ljust(64, b"\0")


def add_text(memory: mmap.mmap, line: str) -> bool:
    """Append a line to the texts; False if there is no room."""
    data = line.replace("\n", " ").encode() + b"\n"
    (used,) = struct.unpack_from("<I", memory, _TEXT_USED_AT)
    if used + len(data) > TEXT_BYTES:
        return False
    memory[HEADER_BYTES + used : HEADER_BYTES + used + len(data)] = data
    struct.pack_into("<I", memory, _TEXT_USED_AT, used + len(data))
    return True


def read_header(memory: mmap.mmap | bytes) -> Header:
    """Counters. Raises ValueError if it is no ring."""
    magic, _, _, number, progress, step, began, longest, wall, opened, phase = _HEADER.unpack_from(memory, 0)
    if magic != _MAGIC:
        raise ValueError("not the notes of a rank")
    return Header(number, progress, step, began, longest, wall, opened, phase.rstrip(b"\0").decode(errors="replace"))


def read_records(memory: mmap.mmap | bytes, most: int = CAPACITY) -> list[Record]:
    """The newest records, oldest first; those that are half written are left out."""
    groups, places = _texts(memory)
    found = []
    last = read_header(memory).number
    for number in range(max(1, last - min(most, CAPACITY) + 1), last + 1):
        at = RECORDS_AT + number % CAPACITY * RECORD_BYTES
        stored, sequence, group, peer, operation, dtype, dims, state, place, begun, ended, *sizes = RECORDS[
            4
        ].unpack_from(memory, at)
        if stored != number or not State.STARTED <= state <= State.ENDED or operation >= len(OPERATIONS):
            continue
        found.append(
            Record(
                number,
                sequence,
                groups.get(group, Group(f"group {group}", ())),
                OPERATIONS[operation],
                peer,
                DTYPES[min(dtype, len(DTYPES) - 1)],
                tuple(sizes[:dims]),
                places.get(place, "?"),
                State(state),
                begun,
                ended,
            )
        )
    return found


def _texts(memory: mmap.mmap | bytes) -> tuple[dict[int, Group], dict[int, str]]:
    groups: dict[int, Group] = {}
    places: dict[int, str] = {}
    (used,) = struct.unpack_from("<I", memory, _TEXT_USED_AT)
    for line in bytes(memory[HEADER_BYTES : HEADER_BYTES + used]).decode(errors="replace").splitlines():
        kind, _, rest = line.partition("\t")
        index, _, rest = rest.partition("\t")
        if kind == "group":
            name, key, ranks = rest.split("\t")
            groups[int(index)] = Group(name, tuple(int(rank) for rank in ranks.split(",") if rank), key)
        elif kind == "place":
            places[int(index)] = rest
    return groups, places
