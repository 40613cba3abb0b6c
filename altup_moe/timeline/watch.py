"""Forward and backward spans of modules, without any change of their code or results.

The backward is seen through hooks on the autograd nodes that a call made. `register_full_backward_hook` would wrap the
outputs into views of a custom function, which may not be modified in place afterwards (torch refuses), and Megatron's
pipeline frees outputs that are no views; hooks on nodes leave every tensor as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import Node

from altup_moe.timeline.recorder import OpenSpan, Recorder
from altup_moe.timeline.spans import current

# torch gives accumulation nodes, which belong to parameters and not to a call, the highest number there is.
_ACCUMULATION = 2**64 - 1

_KEY = "altup_moe.timeline"
"""Key of an autograd node's metadata: the backward spans of the calls that made the node."""

# Calls that have begun: (watch, forward interval, number of the first autograd node). A context variable, because
# threads and greenlets each have their own: two halves of a micro-batch may be inside one module.
_calls: ContextVar[tuple[tuple[Watch, OpenSpan, int], ...]] = ContextVar("calls", default=())


class Watch:
    """The hooks of one `watch`. `remove` or the end of the recording removes them."""

    def __init__(self, recorder: Recorder | None, name: str, modules: Iterable[nn.Module]) -> None:
        self._name = name
        self._handles = []
        if recorder is None:
            return
        self._recorder = recorder
        for module in modules:
            self._handles.append(module.register_forward_pre_hook(self._begin, with_kwargs=True))
            # Also called when the forward raises: a call must not stay open.
            self._handles.append(module.register_forward_hook(self._end, with_kwargs=True, always_call=True))
        recorder.closing.append(self.remove)

    def remove(self) -> None:
        """Remove the hooks from the modules."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        interval = self._recorder.open(self._name, "compute", backward=False)
        first = torch._C._autograd._get_sequence_nr()
        _calls.set((*_calls.get(), (self, interval, first)))
        interval.__enter__()

    def _end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        calls = _calls.get()
        # The last call of this watch; another watch of the same module may lie on top of it.
        index = max((i for i, (watch, _, _) in enumerate(calls) if watch is self), default=None)
        if index is None:  # the recording began inside the call
            return
        _, interval, first = calls[index]
        interval.__exit__(None, None, None)
        _calls.set(calls[:index] + calls[index + 1 :])
        _time_backward(self._recorder.open(self._name, "compute", backward=True), output, first)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested tuples, lists and mappings; other values are ignored."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _nodes(output: Any, first: int) -> set[Node]:
    """The autograd nodes below `output` whose number is at least `first`: those that a call made.

    torch numbers nodes upwards in each thread. Nodes of inputs, and of tensors the module took from elsewhere, were
    made earlier.
    """
    found: set[Node] = set()
    pending = [tensor.grad_fn for tensor in _tensors(output)]
    while pending:
        node = pending.pop()
        if node is not None and node not in found and first <= node._sequence_nr() < _ACCUMULATION:
            found.add(node)
            pending.extend(source for source, _ in node.next_functions)
    return found


def _time_backward(interval: OpenSpan, output: Any, first: int) -> None:
    """Time from the begin of a call's first node to the end of its last. A second backward of the graph extends it."""
    for node in _nodes(output, first):
        # Watched modules may contain each other: a node's calls share its marks, or their spans would cross.
        metadata: dict[str, Any] = node.metadata  # type: ignore[assignment]  # torch's stub says it is a method
        calls: list[OpenSpan] = metadata.setdefault(_KEY, [])
        if not calls:
            node.register_prehook(partial(_begin_backward, calls))
            node.register_hook(partial(_end_backward, calls))
        calls.append(interval)


def _begin_backward(calls: list[OpenSpan], *_: Any) -> None:
    mark = calls[0].clock.mark()
    for call in calls:
        if call.begin is None:
            call.begin = mark


def _end_backward(calls: list[OpenSpan], *_: Any) -> None:
    mark = calls[0].clock.mark()
    for call in calls:
        call.end = mark


def watch(modules: nn.Module | Iterable[nn.Module], name: str) -> Watch:
    """Give each call of the modules a forward span `name`, and a backward span when its graph runs backward.

    Only inside `record`; elsewhere no hook is attached. Outputs and gradients stay bit-identical.
    A module whose `forward` is called directly is not seen (hooks belong to `__call__`), nor is the backward of a call
    under `no_grad`. A forward that is recomputed in the backward counts as a forward, where it happens. A backward span
    reaches from the call's first node to its last: where halves of a micro-batch interleave, the other half's nodes may
    run inside it. So do not watch a module that waits for an exchange in its forward; watch what is in it.

    Args:
        modules: a module, or several (an `nn.ModuleList` is several).
        name: the spans' name.
    """
    one = isinstance(modules, nn.Module) and not isinstance(modules, nn.ModuleList)
    return Watch(current(), name, [modules] if one else list(modules))  # type: ignore[list-item,arg-type]
