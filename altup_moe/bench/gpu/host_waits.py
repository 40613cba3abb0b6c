"""Where a program's host waits for its device: counted on a GPU, and on a CPU that plays one.

A GPU works through a queue that the host fills. Whenever the host reads a value back, or copies one there from memory
that is not pinned, it waits until the queue is empty, and the device then waits for the host.

On a GPU torch tells each such operation (`torch.cuda.set_sync_debug_mode`); waits for events and streams are counted
beside it. On a CPU one memory plays two. What is made for the device ``cpu:0``, or computed from such a tensor, is on
the device; everything else is on the host: `pretended` keeps account of it by storage, and tensors of the device say
``cpu:0`` when they are asked. So a copy between the two is seen, and what reads a value, or has a shape that depends on
values. Operations are counted that torch for CUDA waits in, by its own rule: a copy with ``non_blocking`` does not.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import wraps
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from altup_moe.parallel import cpu
from altup_moe.parallel.patches import COLLECTIVES, original, replace

PRETENDED = torch.device("cpu", 0)
"""The device that the CPU plays: a program says ``cpu`` for its host."""
_PACKAGE = "altup_moe/"
_PASSED_BY = ("altup_moe/bench/gpu/host_waits.py", "altup_moe/parallel/cpu.py")
"""Where a wait is only noted, or handed on."""
_INSIDE = ("/torch/", "/contextlib.py", "/warnings.py")
"""Parts of the names of files whose functions are not told."""
_RUN_AUTOGRAD = ("_engine_run_backward", "custom_backward")
"""Functions, torch's and Megatron's, that call autograd's engine."""
_TOLD_BY_TORCH = "called a synchronizing CUDA operation"
_CUDA = "torch:Tensor.cuda"
_MOVE_TO_HOST = "megatron.core.transformer.moe.token_dispatcher:maybe_move_tensor_to_cpu"

_READS = {"_local_scalar_dense", "equal", "is_nonzero"}
_SIZED_BY_VALUES = {
    "nonzero",
    "masked_select",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "masked_scatter_backward",
}
"""Operations whose result has a shape that values decide. (`repeat_interleave` and indexing by masks: see below.)"""
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


@dataclass(frozen=True, order=True)
class Place:
    """Where the host waited. ``where``: "file:function" of this package; ``through``: what it waited in, and in which
    function of another library, if one called torch."""

    where: str
    through: str


@dataclass
class HostWaits:
    """How many times, by place, and a line of the file for each."""

    count: Counter[Place] = field(default_factory=Counter)
    lines: dict[Place, int] = field(default_factory=dict)

    def note(self, through: str) -> None:
        """The host waits now, called from the package's innermost function that is on the stack."""
        frame: FrameType | None = sys._getframe(1)
        library = ""
        where, line = "elsewhere", 0
        while frame is not None:
            file, function = frame.f_code.co_filename, frame.f_code.co_name
            at = file.rfind(_PACKAGE)
            if at >= 0 and file[at:] not in _PASSED_BY:
                where, line = f"{file[at:]}:{function}", frame.f_lineno
                break
            if at < 0 and not library and not any(part in file for part in _INSIDE):
                library = f" in {function}"
            frame = frame.f_back
        place = Place(where, through + library)
        self.count[place] += 1
        self.lines.setdefault(place, line)


@contextmanager
def counted() -> Iterator[HostWaits]:
    """Count the waits of a block: on a GPU, or inside `pretended`."""
    waits = HostWaits()
    with ExitStack() as stack:
        device = _Pretending.current
        if device is None:
            stack.enter_context(_told_by_torch(waits))
        else:
            before, device.waits = device.waits, waits
            stack.callback(setattr, device, "waits", before)
        for target in ("torch.cuda:synchronize", "torch.cuda:Event.synchronize", "torch.cuda:Stream.synchronize"):
            if device is None or "Stream" not in target:  # one class stands for both on a CPU
                real = original(target)
                stack.callback(replace, target, real)
                replace(target, _noting(waits, real, target.partition(":")[2]))
        yield waits


def _noting(waits: HostWaits, function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        waits.note(name)
        return function(*args, **kwargs)

    return noted


@contextmanager
def _told_by_torch(waits: HostWaits) -> Iterator[None]:
    """torch warns where an operation waits, while the operation is on the stack."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        show = warnings.showwarning

        def shown(message: Any, *args: Any, **kwargs: Any) -> None:
            if _TOLD_BY_TORCH in str(message):
                waits.note("an operation")
            else:
                show(message, *args, **kwargs)

        warnings.showwarning = shown
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(mode)


class _Pretending:
    """What is on the device, by storage. ``waits``: where they are counted; None counts none.

    ``in_gloo``: a collective is started or waited for. gloo copies between buffers of its own then; NCCL does not.
    """

    current: _Pretending | None = None
    _storages: dict[int, StorageWeakRef] = {}  # noqa: RUF012 - libraries keep tensors from one block to the next

    def __init__(self) -> None:
        self.waits: HostWaits | None = None
        self.in_gloo = False

    def has(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the device."""
        found = self._storages.get(tensor.untyped_storage()._cdata)
        return found is not None and not found.expired()

    def take(self, tensors: Any) -> None:
        """Tensors are on the device from now on."""
        for tensor in _tensors(tensors):
            storage = tensor.untyped_storage()
            if not self.has(tensor):
                self._storages[storage._cdata] = StorageWeakRef(storage)

    def leave(self, tensors: Any) -> None:
        """They are on the host."""
        for tensor in _tensors(tensors):
            self._storages.pop(tensor.untyped_storage()._cdata, None)

    def note(self, through: str) -> None:
        """The host waits."""
        if self.waits is not None and not self.in_gloo:
            self.waits.note(through)

    def apart(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function of a collective, in which nothing is counted."""

        @wraps(function)
        def collective(*args: Any, **kwargs: Any) -> Any:
            outer, self.in_gloo = self.in_gloo, True
            try:
                return function(*args, **kwargs)
            finally:
                self.in_gloo = outer

        return collective

    def move(self, tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        """A copy on the device, or on the host."""
        there = device == PRETENDED
        if there == self.has(tensor):
            return tensor
        if not non_blocking:
            self.note("copy to the device" if there else "copy to the host")
        copy = tensor.clone()
        (self.take if there else self.leave)([copy])
        return copy


def _tensors(values: Any) -> list[Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, Tensor)]


@contextmanager
def pretended() -> Iterator[torch.device]:
    """The CPU plays a device besides, in this thread. A model whose waits are to be counted is built inside."""
    device = _Pretending()
    host = cpu._CPU

    def moved(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        if not isinstance(tensor, Tensor) or not device.has(tensor):
            return tensor
        copy = device.move(tensor, host, non_blocking=True)
        return copy.numpy() if as_numpy else copy

    def to_device(tensor: Tensor, *args: Any, non_blocking: bool = False, **kwargs: Any) -> Tensor:
        return device.move(tensor, PRETENDED, non_blocking)

    new: dict[str, Any] = {_MOVE_TO_HOST: moved, _CUDA: to_device}
    new |= {target: device.apart(real) for target in COLLECTIVES if (real := original(target)) is not None}
    before = {target: replace(target, function) for target, function in new.items()}
    cpu._CPU, _Pretending.current = PRETENDED, device
    try:
        with _Operations(device), _Functions(device):
            yield PRETENDED
    finally:
        cpu._CPU, _Pretending.current = host, None
        for target, real in before.items():
            replace(target, real)


class _Functions(TorchFunctionMode):
    """What Python calls: it says a device, copies from one to the other, or makes a list of a tensor."""

    def __init__(self, device: _Pretending) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function, with the account kept."""
        kwargs, device = kwargs or {}, self.device
        name = getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None:
            if func == Tensor.device.__get__:
                return PRETENDED if device.has(first) else first.device
            if func is Tensor.type and len(args) == 1 and not kwargs:
                # The attribute is looked up again, and `parallel.cpu` may have put a function of its own there.
                return torch._C.TensorBase.type(first)
            if name in ("to", "cpu"):
                return self._moved(func, name, first, args, kwargs)
            if name == "tolist" and device.has(first):
                device.note("tolist")
            if name == "numpy" and device.has(first):
                raise TypeError(f"numpy() of a tensor on the device, in {resolve_name(func)}")
        if name in ("tensor", "as_tensor", "new_tensor", "asarray"):
            for one in _tensors([value for value in args if isinstance(value, list | tuple)]):
                if device.has(one):
                    device.note(f"{name} of a value on the device")
        result = func(*args, **kwargs)
        where = kwargs.get("device")
        if where is not None and not isinstance(result, torch.device):
            there = torch.device(where) == PRETENDED
            data = args[int(name == "new_tensor")] if args else None
            copied = not (isinstance(data, Tensor) and device.has(data))
            if there and copied and name in ("tensor", "as_tensor", "new_tensor", "asarray"):
                device.note(f"{name} on the device")
                result = result.clone()  # as_tensor hands a host's tensor back
            (device.take if there else device.leave)(result)
        elif name == "new_tensor" and first is not None and device.has(first):
            device.note("new_tensor on the device")
            device.take(result)
        return result

    def _moved(self, func: Any, name: str, tensor: Tensor, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        target: Any = kwargs.get("device")
        if name == "cpu":
            target = torch.device("cpu")
        elif target is None and len(args) > 1:
            other = args[1]
            if isinstance(other, Tensor):
                target = PRETENDED if self.device.has(other) else torch.device("cpu")
            elif isinstance(other, str | torch.device):
                target = other
        if target is None:
            return result
        non_blocking = kwargs.get("non_blocking", bool(len(args) > 3 and args[3]))
        there = torch.device(target) == PRETENDED
        if there == self.device.has(tensor):
            return result
        # A change of dtype has made a copy already, on the side where the tensor was.
        return self.device.move(result, torch.device(target), bool(non_blocking))


def _autograd_calls() -> bool:
    """Whether autograd itself runs the operation, and no function of a backward pass.

    Its zeros are the gradient of a result that is not used. It makes them where the result is; and what has a gradient
    is on the device, but for a number of no dimensions that is written by a mask.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if function in _RUN_AUTOGRAD:
            return True
        if file != __file__ and "/torch/" not in file:
            return False
        frame = frame.f_back
    return False


class _Operations(TorchDispatchMode):
    """What torch runs, autograd's backward passes too."""

    def __init__(self, device: _Pretending) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation, with the account kept."""
        kwargs, device = kwargs or {}, self.device
        there = [device.has(tensor) for tensor in _tensors((args, kwargs))]
        name = func._schema.name.partition("::")[2]
        if any(there) and (why := self._wait(name, args, kwargs)) is not None:
            device.note(why)
        result = func(*args, **kwargs)
        if (any(there) and name != "copy_") or (name == "zeros" and result.dim() and _autograd_calls()):
            device.take(result)
        return result

    def _wait(self, name: str, args: Any, kwargs: Any) -> str | None:
        """What torch for CUDA waits for in this operation; None if it does not."""
        has = self.device.has
        if name in _READS or name in _SIZED_BY_VALUES:
            return name
        if name == "repeat_interleave" and kwargs.get("output_size") is None:
            return name
        if name == "copy_" and has(args[0]) != has(args[1]) and not (len(args) > 2 and args[2]):
            return "copy to the device" if has(args[0]) else "copy to the host"
        if name in _INDEXING:
            indices = [one for one in args[1] if isinstance(one, Tensor)]
            if any(has(args[0]) and not has(one) for one in indices):
                return f"{name} by an index on the host"
            if any(one.dtype in (torch.bool, torch.uint8) for one in indices):
                # torch fills where a mask is true, without counting, if there is one value, and the host has it.
                filled = name != "index" and args[2].numel() == 1 and not has(args[2]) and not any(args[3:4])
                return None if filled else f"{name} by a mask"
        return None
