"""Differentiable collectives in two calls: one starts a collective and returns, the other waits for it.

Code between the calls runs while data is in flight. The backward pass mirrors this: the gradient of the wait launches
the reverse collective, the gradient of the start waits for it, and gradients of the code between are computed between
(autograd runs operations in reverse order of their creation).

gloo runs a collective in the group's threads. NCCL runs it in the communicator's stream: the wait then makes the
current stream wait for an event there, and does not block the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from altup_moe.overlap.exchange_sizes import agree_on_sizes
from altup_moe.timeline.spans import in_flight, waiting


class Collective(Protocol):
    """A collective that can be started, and the collective of its gradient."""

    @property
    def name(self) -> str:
        """Name on a timeline."""

    def launch(self, sent: Tensor) -> tuple[Tensor, Any]:
        """Start it on a contiguous tensor; returns (output buffer, handle of the work)."""

    def reverse(self) -> Collective:
        """The collective that carries gradients back."""


@dataclass(frozen=True)
class AllToAll:
    """Rows to and from every rank of a group: `send[r]` rows go to rank r, `receive[r]` come from it."""

    group: Any
    send: tuple[int, ...]
    receive: tuple[int, ...]
    name: str

    def launch(self, sent: Tensor) -> tuple[Tensor, Any]:
        """[sum(send), ...] -> [sum(receive), ...]. Raises ValueError before the call if the sizes do not fit."""
        self._check(sent)
        agree_on_sizes(self.group, self.name, sent, self.send, self.receive)
        received = sent.new_empty((sum(self.receive), *sent.shape[1:]))
        work = dist.all_to_all_single(
            received, sent, list(self.receive), list(self.send), group=self.group, async_op=True
        )
        return received, work

    def reverse(self) -> AllToAll:
        """The same rows the other way."""
        return AllToAll(self.group, self.receive, self.send, self.name)

    def _check(self, sent: Tensor) -> None:
        # gloo would abort the process in C++, without a word of who sent what.
        size, who = self.group.size(), f"{self.name} on rank {self.group.rank()} of {self.group.size()}"
        for what, counts in (("send", self.send), ("receive", self.receive)):
            if len(counts) != size or any(n < 0 for n in counts):
                raise ValueError(f"{who}: {what} sizes {list(counts)} are not {size} counts of rows")
        if sum(self.send) != sent.shape[0]:
            raise ValueError(f"{who}: send sizes {list(self.send)} do not add up to the tensor's {sent.shape[0]} rows")
        own = self.group.rank()
        if self.send[own] != self.receive[own]:
            # The counts that ranks have gathered are not those that this one gave.
            problem = f"keeps {self.send[own]} rows by its own count and {self.receive[own]} by the gathered ones"
            raise ValueError(f"{who}: {problem}")


@dataclass(frozen=True)
class ReduceScatter:
    """The sum over a group's ranks, of which each keeps its part of the first dimension."""

    group: Any
    name: str = "reduce-scatter"

    def launch(self, sent: Tensor) -> tuple[Tensor, Any]:
        """[n, ...] -> [n / ranks, ...]. Raises ValueError where ranks have other sizes."""
        size = self.group.size()
        if sent.shape[0] % size:
            raise ValueError(
                f"{self.name}: {sent.shape[0]} rows on rank {self.group.rank()} are not parts of {size} ranks"
            )
        agree_on_sizes(self.group, self.name, sent, *[[sent.shape[0] // size] * size] * 2)
        kept = sent.new_empty((sent.shape[0] // self.group.size(), *sent.shape[1:]))
        return kept, dist.reduce_scatter_tensor(kept, sent, group=self.group, async_op=True)

    def reverse(self) -> AllGather:
        """Every rank needs the gradients of all parts."""
        return AllGather(self.group)


@dataclass(frozen=True)
class AllGather:
    """The parts of all ranks of a group, one after another along the first dimension."""

    group: Any
    name: str = "all-gather"

    def launch(self, sent: Tensor) -> tuple[Tensor, Any]:
        """[n, ...] -> [n * ranks, ...]. Raises ValueError where ranks have other sizes."""
        agree_on_sizes(self.group, self.name, sent, *[[sent.shape[0]] * self.group.size()] * 2)
        whole = sent.new_empty((sent.shape[0] * self.group.size(), *sent.shape[1:]))
        return whole, dist.all_gather_into_tensor(whole, sent, group=self.group, async_op=True)

    def reverse(self) -> ReduceScatter:
        """Gradients of one part are added up from all ranks."""
        return ReduceScatter(self.group)


class Flight:
    """A started collective: its output buffer and the handle of its work."""

    def __init__(self, collective: Collective, backward: bool) -> None:
        self._collective, self._backward = collective, backward
        self._buffer: Tensor | None = None
        self._work: Any = None

    def launch(self, sent: Tensor) -> Tensor:
        """Start; returns the buffer, whose values come later."""
        self._buffer, self._work = self._collective.launch(sent.contiguous())
        in_flight(self._collective.name, self._work, backward=self._backward)
        return self._buffer

    def land(self) -> Tensor:
        """Block until it is done; returns the buffer, filled. Once."""
        # Autograd's nodes hold this as long as the micro-batch's loss lives, which is until the next one's. The work
        # holds what it sent, too.
        buffer, work, self._buffer, self._work = self._buffer, self._work, None, None
        with waiting(self._collective.name, work, backward=self._backward):
            work.wait()
        assert buffer is not None
        # A view: as an output of autograd's it is a tensor of its own.
        return buffer.view_as(buffer)


class _Start(torch.autograd.Function):
    """Launches, and hands on what is sent: the gradient that comes back along this edge has its shape."""

    @staticmethod
    def forward(ctx: Any, sent: Tensor, there: Flight, back: Flight) -> Tensor:
        ctx.back = back
        there.launch(sent)
        return sent.view_as(sent)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        ctx.back.land()
        return grads[0], None, None


class _Wait(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, sent: Tensor, there: Flight, back: Flight) -> Tensor:
        ctx.back = back
        return there.land()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        # Not filled yet: it goes to _Start's backward and nowhere else.
        return ctx.back.launch(grads[0]), None, None


@dataclass(frozen=True)
class Started:
    """A started collective and that of its gradient, for `wait_for_collective`."""

    sent: Tensor
    there: Flight
    back: Flight


def start_collective(sent: Tensor, collective: Collective) -> Started:
    """Launch a collective on a tensor, and return at once."""
    there, back = Flight(collective, backward=False), Flight(collective.reverse(), backward=True)
    return Started(_Start.apply(sent, there, back), there, back)


def wait_for_collective(started: Started) -> Tensor:
    """The received tensor."""
    return _Wait.apply(started.sent, started.there, started.back)


def all_to_all(group: Any, send: Sequence[int], receive: Sequence[int], name: str = "all-to-all") -> AllToAll:
    """An `AllToAll` from counts of any integer kind (lists, arrays)."""
    return AllToAll(group, tuple(int(n) for n in send), tuple(int(n) for n in receive), name)
