"""What torchrun's agent does after a rank has failed: end the others, say which one was first, start again or not."""

from __future__ import annotations

import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from altup_moe.config.exit_codes import EXIT_DIVERGED, EXIT_STOPPED, EXIT_USER_ERROR
from altup_moe.launch.deaths import in_order, joined, report, same_failure
from altup_moe.launch.rank_watch import RankWatch
from altup_moe.parallel import death_record
from altup_moe.parallel.death_record import Death

FINAL_CODES = (EXIT_USER_ERROR, EXIT_STOPPED, EXIT_DIVERGED)
"""Exit codes of a rank after which a restart would not help: a mistake of the user; stopped and saved; diverged."""
ENDED_BY_SIGNAL = (128 + signal.SIGINT, 128 + signal.SIGTERM)
"""Exit codes of a rank that was told to end before it had anything to save: nothing more is to be said."""


class Failures:
    """What the ranks of this node ended with.

    Args:
        name: prefix of lines. records: directory of the ranks' records.
        stopped_at: when a signal told this node to end, seconds since the epoch; infinity if none has.
        speaks: False leaves the lines to netlab, which reads the records of all nodes.
    """

    def __init__(self, name: str, records: Path, stopped_at: Callable[[], float], speaks: bool = True) -> None:
        self.first: Death | None = None
        """The first failure of the latest start."""
        self._name, self._records, self._stopped_at, self._speaks = name, records, stopped_at, speaks
        self._watch = RankWatch()

    def install(self) -> None:
        """Have torchrun's agent do so. It has no such settings, so its check of the ranks is wrapped (torch 2.13)."""
        from torch.distributed.elastic.agent.server.api import RunResult, WorkerState

        from altup_moe.parallel.patches import RESTARTS, original, replace

        monitor = original(RESTARTS)

        def watched(agent: Any, group: Any) -> Any:
            _bear_a_lost_store(group.spec.rdzv_handler)
            self._watch.follow({worker.global_rank: worker.id for worker in group.workers})
            if self._watch.failed and not self._stopping:
                # Otherwise torchrun would wait 30 s for a rank that is stopped.
                self._watch.end_others()
            if self._watch.running:
                return RunResult(state=WorkerState.HEALTHY)
            result = monitor(agent, group)
            if result.is_failed():
                for rank, failure in result.failures.items():
                    self._watch.note(rank, failure.exitcode)
                agent._remaining_restarts = self._restarts_left(agent._remaining_restarts)
            return result

        replace(RESTARTS, watched)

    def _restarts_left(self, planned: int) -> int:
        """Say how the ranks ended, and how many restarts are left."""
        own = [record for record in death_record.read_all(self._records) if record.rank in self._watch.pids]
        deaths = joined(self._watch.failed, own, min(self._watch.told_at, self._stopped_at()))
        before, self.first = self.first, in_order(deaths)[0]
        stopping, first = self._stopping, self.first
        if not self._speaks:
            for death in deaths:
                death_record.write(self._records, death)
            return 0 if stopping or first.code in FINAL_CODES else planned
        if not (stopping and first.code in (*FINAL_CODES, *ENDED_BY_SIGNAL)):
            self._say(*report(self._name, deaths, FINAL_CODES))
        if stopping or first.code in FINAL_CODES or not planned:
            return 0
        if before is not None and same_failure(before, first):
            self._say(f"{self._name}: not started again: step {first.step} has failed twice with the same error")
            return 0
        death_record.clear(self._records)
        self._say(f"{self._name}: all ranks start again, from the newest checkpoint; {planned - 1} restarts are left")
        return planned

    @property
    def _stopping(self) -> bool:
        return self._stopped_at() < math.inf

    def _say(self, *lines: str) -> None:
        for line in lines:
            print(line, file=sys.stderr, flush=True)


def _bear_a_lost_store(handler: Any) -> None:
    """Keep torchrun's agent watching its ranks when the node that hosts the rendezvous has died.

    It asks there, again and again, whether other nodes wait to join. Its ranks are about to save and end.
    """
    if "num_nodes_waiting" in vars(handler):
        return
    from torch.distributed.elastic.rendezvous import RendezvousError

    ask = handler.num_nodes_waiting
    lost: list[RendezvousError] = []

    def waiting() -> int:
        if not lost:
            try:
                return int(ask())
            except RendezvousError as error:
                lost.append(error)
        return 0

    handler.num_nodes_waiting = waiting
