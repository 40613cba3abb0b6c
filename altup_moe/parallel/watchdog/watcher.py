"""The watcher of one rank: a process beside it, which sees the rank stand still whatever stops it.

A thread of the rank would stop with it (SIGSTOP) or wait for Python's lock for ever. The watcher maps the rank's
notes, and tells the other watchers by files in the run directory. When no rank of the run has moved on for longer than
train.hang_timeout beyond the longest step, the watcher of the lowest rank that can writes the report, and all of them
end their ranks. It uses the standard library only, and starts in a few hundredths of a second.

    python -S -m altup_moe.parallel.watchdog.watcher '{"rank": 0, ...}'
"""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from altup_moe.parallel.death_record import DIRECTORY, Death
from altup_moe.parallel.death_record import write as write_death
from altup_moe.parallel.watchdog import processes, ring
from altup_moe.parallel.watchdog.report import Hang, find_cause, summary, whole
from altup_moe.parallel.watchdog.status import (
    DIED,
    EXPIRED,
    REPORTED,
    RUNNING,
    Status,
    read_status,
    remove_statuses,
    start_name,
    write_status,
)

STACKS_SIGNAL = signal.SIGRTMIN + 8
"""Has the rank write its Python stacks (faulthandler)."""
END, QUIT, PING = b"e", b"q", b"p"
"""To the rank: end now; is your Python there. From the rank: the run is over; yes."""
MANY_RANKS, RECORDS, RECORDS_OF_MANY = 64, 1024, 256
ANSWER_SECONDS, STACKS_SECONDS, REPORT_SECONDS, END_SECONDS = 3.0, 2.0, 6.0, 2.0
START_SECONDS = 30.0
"""Before the first step train.hang_timeout counts as at least so much: ranks that meet try again every few seconds."""
PATIENCE = 10
"""How many times train.hang_timeout a rank that works outside collectives may take before its first step is over, and
in a save, a validation or a generation; and how long it may wait for a tracker (W&B, MLflow), whatever it does."""
TRAINING, PREPARING, TRACKING = "training", "preparing", "telling a tracker"


@dataclass(frozen=True)
class Orders:
    """What the rank tells its watcher at the start. ``memory``, ``stacks``, ``pipe``: inherited file descriptors."""

    rank: int
    world_size: int
    pid: int
    timeout: float
    directory: str
    memory: int
    stacks: int
    pipe: int
    exit_code: int
    start_seconds: float = START_SECONDS


class Watcher:
    """See the module. Mutable."""

    def __init__(self, orders: Orders) -> None:
        self.orders = orders
        self.directory = Path(orders.directory)
        self.memory = mmap.mmap(orders.memory, ring.SIZE, prot=mmap.PROT_READ)
        self.pipe = socket.socket(fileno=orders.pipe)
        self.pipe.setblocking(False)
        self.poll = min(1.0, max(0.05, orders.timeout / 20))
        self.started = time.time()
        self.work = processes.Work(orders.pid)
        self.moved = self.polled = time.monotonic()
        self.seen: tuple[int, int] = (-1, -1)
        self.published = -1e9
        self.others: dict[int, tuple[int, float]] = {}
        name = start_name(os.environ)
        self.status = Status(orders.rank, orders.world_size, name, orders.pid, os.uname().nodename)

    def watch(self) -> None:
        """Until the rank ends in one way or another."""
        self.publish()
        while True:
            over = self.over()
            if over == "left":
                remove_statuses(self.directory, None if self.orders.rank == 0 else [self.orders.rank])
                return
            if over == "died":
                self.publish(state=DIED, records=self.records(), stacks=self.stacks())
                return
            now = time.monotonic()
            if now - self.polled > 10 * self.poll + 2:
                # This process did not run either: the whole job was stopped, as by Ctrl-Z. Nobody hangs.
                self.moved = now
            self.polled = now
            if self.look(now):
                return

    def over(self) -> str:
        """Wait a while; "left" if the run is over, "died" if the rank's process is gone, else ""."""
        ready, _, _ = select.select([self.pipe], [], [], self.poll)
        if ready:
            with suppress(BlockingIOError):
                try:
                    data = self.pipe.recv(64)
                except ConnectionError:
                    return "died"
                if QUIT in data:
                    return "left"
                if not data:
                    return "died"
                if self.status.answers is False and PING in data:
                    self.publish(answers=True)
        return "died" if os.getppid() != self.orders.pid else ""

    def look(self, now: float) -> bool:
        """See whether the rank has moved on, tell the others; True if all is over because the run hangs."""
        header = ring.read_header(self.memory)
        if (header.number, header.progress) != self.seen:
            self.seen, self.moved = (header.number, header.progress), now
            self.others.clear()
        quiet, limit = now - self.moved, self.orders.timeout + header.longest_step
        if header.step_began == 0.0:
            limit = max(limit, self.orders.start_seconds)
        expired = quiet >= limit and not self.excused(header, quiet, now)
        if expired and self.status.state != EXPIRED:
            self.expire(quiet)
        elif not expired and self.status.state == EXPIRED:
            self.publish(state=RUNNING, records=(), answers=None)
        beat = self.orders.timeout / (12 if quiet > limit / 2 else 4)
        if now - self.published >= beat:
            self.publish()
        if quiet < limit / 2:
            return False
        return self.judge(now, quiet, header)

    def excused(self, header: ring.Header, quiet: float, now: float) -> bool:
        """Whether the rank works at something long that has no collectives, or waits for a tracker's server."""
        works = self.work.goes_on(now)
        if header.phase == TRACKING:
            return quiet < PATIENCE * self.orders.timeout
        if header.phase == TRAINING and header.longest_step > 0:
            return False
        newest = ring.read_records(self.memory, 1)
        if newest and newest[0].state is not ring.State.ENDED:
            return False
        return works and (header.phase == PREPARING or quiet < PATIENCE * self.orders.timeout)

    def judge(self, now: float, quiet: float, header: ring.Header) -> bool:
        """Look at the other ranks; if none moves on, report and end. Returns whether it did."""
        statuses: dict[int, Status] = {self.orders.rank: self.status}
        silent: dict[int, float] = {}
        waits_for_someone = False
        for rank in range(self.orders.world_size):
            if rank == self.orders.rank:
                continue
            one = read_status(self.directory, rank)
            if one is not None and (one.start != self.status.start or one.world_size != self.orders.world_size):
                one = None
            beat = one.beat if one is not None else -1
            if rank not in self.others or self.others[rank][0] != beat:
                self.others[rank] = (beat, now)
            unheard = now - self.others[rank][1]
            if one is not None and one.state == REPORTED:
                self.end(one.summary)
                return True
            # A watcher that asks its rank whether Python answers writes nothing meanwhile.
            patience = max(self.orders.timeout / 2, ANSWER_SECONDS + 2)
            if one is None:
                waits_for_someone |= unheard < patience
                continue
            if one.state == RUNNING:
                if unheard < patience:
                    waits_for_someone = True
                    statuses[rank] = one
                    continue
                if one.at < self.started - 5 and unheard >= patience:
                    # A file that an earlier start has left.
                    continue
                silent[rank] = unheard
            statuses[rank] = one
        if self.status.state != EXPIRED or waits_for_someone:
            return False
        if text := self.reported():
            self.end(text)
            return True
        hang = Hang(
            self.orders.world_size,
            statuses,
            silent,
            quiet,
            self.orders.timeout,
            starting=header.longest_step == 0.0 and header.step_began == 0.0,
        )
        speakers = sorted(rank for rank, one in statuses.items() if one.state == EXPIRED)
        if speakers[0] == self.orders.rank or not self.wait_for_report(speakers[0]):
            self.report(hang)
        return True

    def reported(self) -> str:
        """The head of the report that another watcher of this start has written already; "" if none has."""
        with suppress(OSError):
            for file in self.directory.glob("hang_*.txt"):
                if file.stat().st_mtime >= self.started:
                    return file.read_text(encoding="utf-8").partition("\n\n")[0] or "the run hangs"
        return ""

    def report(self, hang: Hang) -> None:
        """Write and print the report, tell the others, end the rank."""
        self.tell_stacks()
        deadline = time.monotonic() + STACKS_SECONDS
        hang = replace(hang, statuses={rank: self.with_stacks(one, deadline) for rank, one in hang.statuses.items()})
        cause = find_cause(hang)
        file = self.directory / time.strftime("hang_%Y%m%d-%H%M%S.txt")
        with suppress(OSError):
            self.directory.mkdir(parents=True, exist_ok=True)
            # In one piece: the others read it (`reported`).
            partial = file.with_suffix(".partial")
            partial.write_text(whole(hang, cause, str(file)), encoding="utf-8")
            partial.replace(file)
        text = "\n".join(summary(hang, cause, str(file)))
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)
        self.publish(state=REPORTED, report=str(file), summary=text)
        self.end(text)

    def with_stacks(self, one: Status, deadline: float) -> Status:
        """A rank's status with its stacks, which its watcher adds now."""
        if one.rank == self.orders.rank:
            return self.status
        while one.state == EXPIRED and not one.told and time.monotonic() < deadline:
            time.sleep(0.05)
            one = read_status(self.directory, one.rank) or one
        return one

    def wait_for_report(self, speaker: int) -> bool:
        """Until the rank that reports has, and end; False if it does not."""
        self.tell_stacks()
        deadline = time.monotonic() + REPORT_SECONDS
        while time.monotonic() < deadline:
            one = read_status(self.directory, speaker)
            # The one that reports takes its status away as soon as its rank has ended.
            text = one.summary if one is not None and one.state == REPORTED else self.reported()
            if text:
                self.end(text)
                return True
            time.sleep(0.05)
        return False

    def expire(self, quiet: float) -> None:
        """Note what the rank does, and tell the others."""
        answers = self.answers()
        self.publish(state=EXPIRED, since=quiet, answers=answers, records=self.records(), process=self.state())

    def tell_stacks(self) -> None:
        """Once all is over (a signal may disturb what is not): add the stacks, of a stopped rank as well."""
        self.publish(stacks=self.stacks(wake=self.status.stopped), told=True)

    def answers(self) -> bool | None:
        """Whether Python runs in the rank; None if it is stopped."""
        if self.state() in ("T", "t"):
            return None
        try:
            self.pipe.send(PING)
        except OSError:
            return None
        ready, _, _ = select.select([self.pipe], [], [], ANSWER_SECONDS)
        if not ready:
            return False
        with suppress(OSError):
            # A rank that leaves at this moment says so to the next poll: its end of the pipe is closed.
            return bool(self.pipe.recv(64))
        return None

    def stacks(self, wake: bool = False) -> str:
        """Python stacks of the rank's threads; "" if it cannot run."""
        before = os.fstat(self.orders.stacks).st_size
        with suppress(OSError):
            os.kill(self.orders.pid, STACKS_SIGNAL)
            if wake:
                os.kill(self.orders.pid, signal.SIGCONT)
        size = before
        for _ in range(20):
            time.sleep(0.02)
            last, size = size, os.fstat(self.orders.stacks).st_size
            if size > before and size == last:
                break
        if wake:
            with suppress(OSError):
                os.kill(self.orders.pid, signal.SIGSTOP)
        return os.pread(self.orders.stacks, size - before, before).decode(errors="replace")

    def records(self) -> tuple[ring.Record, ...]:
        """The rank's last operations, in time of day."""
        wall = ring.read_header(self.memory).wall
        most = RECORDS if self.orders.world_size <= MANY_RANKS else RECORDS_OF_MANY
        return tuple(
            replace(r, begun=r.begun + wall, ended=r.ended + wall if r.ended else 0.0)
            for r in ring.read_records(self.memory, most)
        )

    def state(self) -> str:
        """The process's state."""
        return processes.state(self.orders.pid)

    def publish(self, **changes: object) -> None:
        """Tell the other watchers how the rank is."""
        header, now = ring.read_header(self.memory), time.monotonic()
        self.status = replace(
            self.status,
            **{
                "beat": self.status.beat + 1,
                "at": time.time(),
                "phase": header.phase,
                "step": header.step,
                "since": now - self.moved,
                "process": self.status.process if self.status.stopped else self.state(),
                **changes,
            },  # type: ignore[arg-type]
        )
        self.published = now
        if self.orders.world_size > 1:
            write_status(self.directory, self.status)

    def end(self, text: str) -> None:
        """End the rank: by itself with the exit code of a hang; killed if it does not."""
        self.leave_death(text)
        with suppress(OSError):
            self.pipe.send(END)
        with suppress(OSError):
            os.kill(self.orders.pid, signal.SIGCONT)
        deadline = time.monotonic() + END_SECONDS
        while os.getppid() == self.orders.pid:
            if time.monotonic() >= deadline:
                with suppress(OSError):
                    os.kill(self.orders.pid, signal.SIGKILL)
                deadline += 60
            time.sleep(0.02)
        remove_statuses(self.directory, [self.orders.rank])

    def leave_death(self, text: str) -> None:
        """What the launcher prints of a rank that it finds ended."""
        directory = os.environ.get(DIRECTORY)
        if directory:
            lines = [line.strip() for line in text.splitlines()]
            error = " ".join(lines[:2])[:500]
            death = Death(
                self.orders.rank,
                time.time(),
                self.orders.exit_code,
                self.orders.pid,
                error,
                "",
                self.status.step,
                self.status.host,
            )
            with suppress(OSError):
                write_death(directory, death)


def start_command(orders: Orders) -> list[str]:
    """The command that starts a watcher."""
    return [sys.executable, "-S", "-m", "altup_moe.parallel.watchdog.watcher", json.dumps(asdict(orders))]


def main(text: str) -> None:
    """Watch as the orders say."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
        # A terminal and launchers send signals to all processes of a group. The rank decides when this one ends.
        signal.signal(number, signal.SIG_IGN)
    Watcher(Orders(**json.loads(text))).watch()


if __name__ == "__main__":
    main(sys.argv[1])
