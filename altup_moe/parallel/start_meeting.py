"""Ranks meet before the first step: a mistake that one has ends all, and all train with the same things.

Rank 0 opens the store of torch.distributed's rendezvous before anything is prepared, so that whoever fails can tell the
others through it. Nobody waits for a rank that has ended: a rank that waits sees the problem at once, one that works is
ended by a thread of its own. Keys of the store, under a prefix of this start:

    world      the first rank's WORLD_SIZE, with its name        problem   what ended the start: code, rank, host, text
    joined/R   how often rank R came                             seen      ranks that know of the problem
    ready      rank 0 has prepared what the others read
    and of each comparison N
    N/print/R  digest of rank R's fingerprint                    N/arrived, N/complete  how many, whether all are there
    N/verdict  ranks whose entries rank 0 asks for; none if all agree
    N/detail/R entries of such a rank                            N/line    who differs
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from altup_moe.config.errors import PeerError, UserError
from altup_moe.config.exit_codes import EXIT_FAILED, EXIT_USER_ERROR
from altup_moe.parallel.agreement import ASKED_GROUPS, SHOWN_RANKS, Fingerprint, Party, difference_line, parties
from altup_moe.parallel.tcp_store import open_store

LONGEST_PAUSE = 0.1
"""Seconds between two looks at a key. (A wait inside the store hears no Ctrl-C, and prints lines of its own.)"""
WATCH_SECONDS = 0.5
"""How often the thread of a rank that works looks for a problem."""
OWN_SECONDS = 1.0
"""How long a rank other than 0 waits whether rank 0 has the same problem, before it tells its own."""
LINGER_SECONDS = 60.0
"""How long ranks stay after a problem at most, until all know of it: when the first has ended, its launcher ends the
others of its node, and the store may go with them."""
GONE_SECONDS = 10.0
"""How long ranks look for the store of torchrun's agent, which was there before they were."""
ARRIVE_SECONDS = 600.0
"""How long ranks wait for rank 0's store, and rank 0 for the fingerprints of the others."""
EARLY_SECONDS = 30.0
"""How long a rank that has failed already looks for that store."""
ROUNDS = 2
"""Comparisons of a start: of what is known at once, and of what is found on the disk."""
WAITED_FOR = ("ready", *(f"{number}/{key}" for number in range(ROUNDS) for key in ("complete", "verdict", "line")))
"""Keys that ranks wait for; a problem sets them too, to wake those ranks."""

_opened = 0
"""Meetings of this process so far: all ranks count alike, and each start has keys of its own."""


@dataclass(frozen=True)
class _Place:
    """Where the launcher put this process, and where ranks meet."""

    rank: int
    world_size: int
    address: str
    port: int

    @property
    def agent_hosts(self) -> bool:
        """Whether torchrun's agent has opened the store; else rank 0 does."""
        return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _place() -> _Place | None:
    """None of a process that is alone, or that no launcher has told where ranks meet."""
    env = os.environ
    try:
        size, port = int(env.get("WORLD_SIZE", "1")), int(env.get("MASTER_PORT", "0"))
        return _Place(int(env["RANK"]), size, env["MASTER_ADDR"], port) if size > 1 and port else None
    except (KeyError, ValueError):
        return None


class StartMeeting:
    """One rank's part in a meeting. Without a store it is alone, and everything is agreed.

    Args:
        store: shared by all ranks of this start. own: it ends with the processes of this start, not with a world that
            the caller has made. ends_process: a problem of another rank ends this process.
    """

    def __init__(
        self, store: Any = None, rank: int = 0, world_size: int = 1, *, own: bool = False, ends_process: bool = False
    ) -> None:
        self._store, self.rank, self.world_size, self._own = store, rank, world_size, own
        self._host, self._ended = platform.node(), threading.Event()
        self._lock, self._joined, self._counted, self._rounds = threading.Lock(), False, False, 0
        if store is not None and ends_process:
            # Its own connection: this one may be blocked by a wait.
            threading.Thread(target=self._watch, args=(store.clone(),), daemon=True).start()

    @property
    def world_store(self) -> Any:
        """The store for `torch.distributed.init_process_group`; None where there is no meeting."""
        import torch.distributed as dist

        return None if self._store is None else dist.PrefixStore("world", self._store)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Around work of which every rank does its part: what ends it here is told to all."""
        if self._store is None:
            yield
            return
        try:
            if not self._joined:
                self._join()
            yield
        except PeerError:
            raise
        except UserError as error:
            error.told = self._tell(str(error), EXIT_USER_ERROR)
            raise
        except Exception as error:
            self._tell(f"{type(error).__name__}: {error}", EXIT_FAILED)
            raise

    def first_is_ready(self) -> None:
        """Rank 0 says that what the others read is there; they wait for it. Raises PeerError as `agree` does."""
        if self._store is None:
            return
        if self.rank == 0:
            self._store.set("ready", "1")
        self._wait("ready")

    def agree(self, make: Callable[[], Fingerprint]) -> None:
        """Compare the fingerprints that all ranks make; a rank that is alone makes none.

        Raises:
            PeerError: on every rank. Ranks differ (rank 0 prints the line), or another rank has failed.
        """
        if self._store is None:
            return
        fingerprint, here = make(), f"{self._rounds}/"
        self._rounds += 1
        self._store.set(f"{here}print/{self.rank}", fingerprint.digest)
        if self._store.add(f"{here}arrived", 1) == self.world_size:
            self._store.set(f"{here}complete", "1")
        found: list[tuple[int, ...]] = []
        if self.rank == 0:
            self._wait(f"{here}complete", ARRIVE_SECONDS)
            digests = self._store.multi_get([f"{here}print/{rank}" for rank in range(self.world_size)])
            found = parties([digest.decode() for digest in digests])
            # Who asks for nobody says that all agree.
            asked = [ranks[0] for ranks in found[: ASKED_GROUPS + 1]] if len(found) > 1 else []
            self._store.set(f"{here}verdict", json.dumps(asked))
        else:
            asked = json.loads(self._wait(f"{here}verdict"))
        if not asked:
            return
        if self.rank in asked:
            self._store.set(f"{here}detail/{self.rank}", json.dumps([self._host, dict(fingerprint.entries)]))
        if self.rank == 0:
            details = [json.loads(self._wait(f"{here}detail/{rank}")) for rank in asked]
            known = [Party(ranks, *detail) for ranks, detail in zip(found, details, strict=False)]
            self._store.set(f"{here}line", difference_line(known[0], known[1:]))
        line = self._wait(f"{here}line").decode()
        self._seen(self._store)
        self._stay()
        raise PeerError(line, told=self.rank != 0)

    def close(self) -> None:
        """The start is over: nobody is ended any more."""
        self._ended.set()

    def _join(self) -> None:
        self._joined = True
        mine = f"{self.world_size} on rank {self.rank} ({self._host})"
        first = self._store.compare_set("world", "", mine).decode()
        if first.split(" ", 1)[0] != str(self.world_size):
            raise UserError(f"ranks differ: WORLD_SIZE is {mine} and {first}; start every rank with the same number")
        if self._store.add(f"joined/{self.rank}", 1) > 1:
            raise UserError(f"RANK {self.rank} is there twice, once on {self._host}; each rank needs its own number")

    def _wait(self, key: str, seconds: float | None = None) -> bytes:
        """The value of a key, once it is there.

        Raises:
            PeerError: another rank has told of a problem, or rank 0 has gone. UserError: it took too long.
        """
        import torch.distributed as dist

        pauses = _pauses()
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            while not self._store.check([key]):
                self._raise_problem()
                if deadline is not None and time.monotonic() > deadline:
                    raise UserError(f"not at the start after {seconds:g} s: {self._absent()}")
                time.sleep(next(pauses))
            # A problem sets the key too.
            self._raise_problem()
            value: bytes = self._store.get(key)
            return value
        except dist.DistNetworkError as error:
            # The store went with the rank that had opened it: its own message says why.
            raise PeerError("rank 0 has ended before the first step", told=self.rank != 1, code=EXIT_FAILED) from error

    def _raise_problem(self) -> None:
        if self._store.check(["problem"]):
            code, rank, host, text = json.loads(self._store.get("problem"))
            self._seen(self._store)
            self._stay()
            raise PeerError(f"rank {rank} ({host}): {text}", code=code)

    def _absent(self) -> str:
        """Ranks without a fingerprint, for a message."""
        absent = [
            rank for rank in range(self.world_size) if not self._store.check([f"{self._rounds - 1}/print/{rank}"])
        ]
        more = f" and {len(absent) - SHOWN_RANKS} more" if len(absent) > SHOWN_RANKS else ""
        return f"rank {', '.join(map(str, absent[:SHOWN_RANKS]))}{more} of {self.world_size}"

    def _tell(self, text: str, code: int) -> bool:
        """Tell the other ranks why this one ends. Returns whether another rank says the same."""
        try:
            if self.rank != 0:
                # Mostly all find the same mistake; then rank 0 prints it.
                deadline = time.monotonic() + OWN_SECONDS
                while not self._store.check(["problem"]) and time.monotonic() < deadline:
                    time.sleep(LONGEST_PAUSE)
            own = json.dumps([code, self.rank, self._host, text])
            _, first_rank, _, first_text = json.loads(self._store.compare_set("problem", "", own))
            for waited_for in WAITED_FOR:
                self._store.compare_set(waited_for, "", "problem")
            self._seen(self._store)
        except RuntimeError:
            return False  # nobody is left to be told
        self._stay()
        return bool(first_rank != self.rank and first_text == text)

    def _stay(self) -> None:
        """Let this process, which is about to end, live until all ranks know of the problem."""
        if self._own:
            # Not a daemon: the interpreter waits for it at its end.
            threading.Thread(target=self._until_all_know, args=(self._store.clone(),)).start()

    def _until_all_know(self, store: Any) -> None:
        deadline = time.monotonic() + LINGER_SECONDS
        with suppress(RuntimeError):
            while store.add("seen", 0) < self.world_size and time.monotonic() < deadline:
                time.sleep(LONGEST_PAUSE)

    def _seen(self, store: Any) -> None:
        """Count this rank, once, among those that know how the start ends."""
        with self._lock:
            if not self._counted:
                self._counted = True
                store.add("seen", 1)

    def _watch(self, store: Any) -> None:
        """End this process when another rank has a problem, whatever this one is waiting for or working at."""
        while not self._ended.wait(WATCH_SECONDS):
            try:
                if not store.check(["problem"]):
                    continue
                code, rank, _, _ = json.loads(store.get("problem"))
                if rank == self.rank:
                    return
                self._seen(store)
            except RuntimeError:
                return
            self._until_all_know(store)
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(code)


@contextmanager
def start_meeting(*, ends_process: bool = False) -> Iterator[StartMeeting]:
    """This rank's part in the start of a run; open until the first step. Alone, nothing is opened.

    Args:
        ends_process: another rank's problem ends this process, wherever it is (not for a caller's own program).
    """
    meeting = _open(ends_process)
    try:
        yield meeting
    finally:
        meeting.close()


def tell_early(text: str) -> bool:
    """Tell the other ranks of a mistake that was found before there was a meeting. Imports torch.

    Returns:
        Whether another rank prints the same.
    """
    place = _place()
    if place is None:
        return False
    meeting = _own_meeting(place, False, EARLY_SECONDS)
    return meeting is not None and meeting._tell(text, EXIT_USER_ERROR)


def _pauses() -> Iterator[float]:
    """Seconds between two looks: short at first, since most waits are."""
    pause = 0.002
    while True:
        yield pause
        pause = min(LONGEST_PAUSE, pause * 1.5)


def _open(ends_process: bool) -> StartMeeting:
    place = _place()
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_initialized():
            rank, size = dist.get_rank(), dist.get_world_size()
            if size == 1:
                return StartMeeting()
            # All processes of a world open their runs in the same order.
            store = dist.distributed_c10d._get_default_store()
            number = store.add(f"altup_moe/opened/{rank}", 1)
            return StartMeeting(dist.PrefixStore(f"altup_moe/{number}", store), rank, size)
    if place is None:
        return StartMeeting()
    seconds = GONE_SECONDS if place.agent_hosts else ARRIVE_SECONDS
    meeting = _own_meeting(place, ends_process, seconds)
    if meeting is None:
        line = f"nobody answers at {place.address}:{place.port}, where ranks meet, for {seconds:g} s"
        # The launchers have met there already: the network or the first node has gone, which is no mistake of a user's.
        code = EXIT_FAILED if place.agent_hosts else EXIT_USER_ERROR
        raise PeerError(line, told=os.environ.get("LOCAL_RANK", "0") != "0", code=code)
    return meeting


def _own_meeting(place: _Place, ends_process: bool, seconds: float) -> StartMeeting | None:
    """A meeting in the store of the launcher's rendezvous; None if it was not found in time."""
    global _opened
    import torch.distributed as dist

    hosts = place.rank == 0 and not place.agent_hosts
    if not hosts and not _answers(place, seconds):
        return None
    here = os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE")) == str(place.world_size)
    store = open_store(place.address, place.port, hosts=hosts, seconds=ARRIVE_SECONDS, alone=here)
    _opened += 1
    return StartMeeting(
        dist.PrefixStore(f"altup_moe/{_start_number(place, store, here)}/{_opened}", store),
        place.rank,
        place.world_size,
        own=True,
        ends_process=ends_process,
    )


def _start_number(place: _Place, store: Any, here: bool) -> int:
    """Tells this start from those before it in the same store: the same on every rank.

    The store that rank 0 opens is a new one in each start. An agent's is the same in all. On one node that agent counts
    them; on several each counts only those that its own ranks made necessary, so a rank counts its own in the store.
    """
    if not place.agent_hosts:
        return 0
    if here:
        return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    return int(store.add(f"altup_moe/starts/{place.rank}", 1))


def _answers(place: _Place, seconds: float) -> bool:
    """Wait until somebody listens where ranks meet. torch's own waiting prints a page of C++ where nobody does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((place.address, place.port), timeout=5.0).close()
        except OSError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        else:
            return True
