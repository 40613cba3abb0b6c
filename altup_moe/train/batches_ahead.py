"""Micro-batches of the next step, made by a thread while a step runs.

Reading windows of tokens and making samples of them (span corruption draws and rearranges) is work of the host. Beside
a GPU it would lie between two steps. Samples are made by number, so who makes them, and when, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch

from altup_moe.train.batches import Batch


class BatchesAhead:
    """One step's micro-batches in advance. ``make``: number of the first sample -> a step's micro-batches."""

    def __init__(self, make: Callable[[int], list[Batch]], device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._make = partial(_pinned, make) if on_gpu else make
        # Pinned memory belongs to a device's context; a new thread would open one on device 0.
        choose = partial(torch.cuda.set_device, device) if on_gpu else None
        self._thread = ThreadPoolExecutor(1, "batches", initializer=choose)
        self._begun: tuple[int, Future[list[Batch]]] | None = None

    def take(self, start: int, following: int | None) -> list[Batch]:
        """The micro-batches from sample `start` on; raises what making them raised.

        Args:
            following: first sample of the step after it, which is begun; None begins none.
        """
        begun, self._begun = self._begun, None
        # The first step has none, and after a rollback what was begun is of another one.
        ready = begun is not None and begun[0] == start
        batches = begun[1].result() if begun is not None and ready else self._make(start)
        if following is not None:
            self._begun = following, self._thread.submit(self._make, following)
        return batches


def _pinned(make: Callable[[int], list[Batch]], start: int) -> list[Batch]:
    return [batch.pinned() for batch in make(start)]
