"""Run Megatron-Core's parallel stack on a CPU with gloo. No effect where CUDA is present.

Megatron-Core asks torch.cuda for a device, streams and random states, and names "cuda" literally in a few tensor
factories and type checks (measured on 0.16.1 and 0.19.2). `enable` answers those questions for the CPU:

- the current device is the CPU; streams and events are no-ops, since CPU operations are already in order;
- the "CUDA" random state is the CPU generator's, so Megatron's tensor-parallel dropout streams work;
- ``device="cuda"`` in torch's factories means the CPU, and ``tensor.cuda()`` is the tensor itself;
- optimizers that compare ``tensor.type()`` with ``torch.cuda.FloatTensor`` see that name, during that code only;
- pieces of different sizes, which gloo can neither gather nor reduce-scatter, are padded (expert-tensor parallelism);
- all-to-all split sizes, which Megatron turns into arrays as it copies them off the GPU, become arrays here too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.utils._device import _device_constructors

from altup_moe.parallel.patches import FACTORIES, original, replace

_CPU = torch.device("cpu")
_GATHER, _SCATTER = "_gather_along_first_dim", "_reduce_scatter_along_first_dim"
_enabled = False


class _InOrder:
    """Stands in for a CUDA stream or event: everything on a CPU is already in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    wait_stream = wait_event = synchronize = record = wait = _nothing

    def record_event(self, event: Any = None) -> _InOrder:
        return _InOrder()

    def query(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _InOrder)

    def __hash__(self) -> int:
        return 0


def enable() -> bool:
    """Prepare this process for Megatron-Core on a CPU; call before building groups or models.

    Returns:
        True where the CPU stands in for CUDA, False where CUDA is present (nothing was changed).
    """
    global _enabled
    if torch.cuda.is_available():
        return False
    if not _enabled:
        _answer_for_cuda()
        _redirect_factories()
        _patch_megatron()
        _enabled = True
    return True


def _answer_for_cuda() -> None:
    in_order = _InOrder()
    answers: dict[str, Any] = {
        "current_device": lambda: _CPU,
        "synchronize": lambda device=None: None,
        "Stream": _InOrder,
        "Event": _InOrder,
        "current_stream": lambda device=None: in_order,
        "default_stream": lambda device=None: in_order,
        "stream": lambda stream: nullcontext(),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda new_state, device=None: torch.set_rng_state(new_state),
        # Not torch.manual_seed: that one seeds CUDA too, which would come back here.
        "manual_seed": lambda seed: torch.default_generator.manual_seed(int(seed)),
        "empty_cache": lambda: None,
    }
    for name, answer in answers.items():
        replace(f"torch.cuda:{name}", answer)
    replace("torch:Tensor.cuda", lambda self, *args, **kwargs: self)


def _on_cpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _redirect_factories() -> None:
    def redirect(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        @functools.wraps(factory)
        def on_cpu(*args: Any, **kwargs: Any) -> torch.Tensor:
            if _on_cpu(kwargs.get("device")):
                kwargs["device"] = _CPU
            kwargs.pop("pin_memory", None)
            return factory(*args, **kwargs)

        return on_cpu

    # `with torch.device(...)` knows factories by identity, from a list made at its first use: of the originals, then.
    _device_constructors()
    for name in FACTORIES:
        replace(f"torch:{name}", redirect(original(f"torch:{name}")))


@contextmanager
def _cuda_type_names() -> Iterator[None]:
    """While open, ``tensor.type()`` of a CPU tensor reads as the CUDA type of the same dtype."""
    plain = torch.Tensor.type

    def named(self: torch.Tensor, dtype: Any = None, non_blocking: bool = False, **kwargs: Any) -> Any:
        if dtype is not None:
            return plain(self, dtype, non_blocking, **kwargs)
        return plain(self).replace("torch.", "torch.cuda.")

    torch.Tensor.type = named  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.Tensor.type = plain  # type: ignore[method-assign]


def _with_cuda_type_names(target: str) -> None:
    raw = original(target)
    function = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with _cuda_type_names():
            return function(*args, **kwargs)

    replace(target, type(raw)(wrapped) if isinstance(raw, (classmethod, staticmethod)) else wrapped)


def _patch_megatron() -> None:
    states = "megatron.core.tensor_parallel.random"
    replace(f"{states}:_get_cuda_rng_state", lambda device="cuda", clone=False, graph_safe=False: torch.get_rng_state())
    replace(
        f"{states}:_set_cuda_rng_state", lambda new_state, device=-1, graph_safe=False: torch.set_rng_state(new_state)
    )

    def as_array(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    replace("megatron.core.transformer.moe.token_dispatcher:maybe_move_tensor_to_cpu", as_array)
    _pad_uneven_collectives()
    original("torch:Tensor.type")  # `_cuda_type_names` replaces it for moments; its guard is asked once
    _with_cuda_type_names("megatron.core.optimizer.optimizer:clip_grad_by_total_norm_fp32")
    _with_cuda_type_names("megatron.core.optimizer.optimizer:Float16OptimizerWithFloat16Params.__init__")
    _with_cuda_type_names("megatron.core.optimizer.distrib_optimizer:DistributedOptimizer.__init__")


def _pad_uneven_collectives() -> None:
    mappings = "megatron.core.tensor_parallel.mappings"
    gather, scatter = (original(f"{mappings}:{name}") for name in (_GATHER, _SCATTER))

    def padded(piece: torch.Tensor, rows: int) -> torch.Tensor:
        return torch.cat([piece, piece.new_zeros(rows - piece.shape[0], *piece.shape[1:])])

    @functools.wraps(gather)
    def gather_any(input_: Any, group: Any, output_split_sizes: Any = None, use_global_buffer: bool = False) -> Any:
        if output_split_sizes is None or group.size() == 1:
            return gather(input_, group, None, use_global_buffer)
        own = output_split_sizes[group.rank()]
        if input_.shape[0] != own:
            who = f"gather of uneven pieces on rank {group.rank()} of {group.size()}"
            raise ValueError(f"{who}: {input_.shape[0]} rows; the sizes {list(output_split_sizes)} say {own}")
        rows = max(output_split_sizes)
        pieces = gather(padded(input_, rows), group).split(rows) if rows else [input_] * group.size()
        return torch.cat([piece[:n] for piece, n in zip(pieces, output_split_sizes, strict=True)])

    @functools.wraps(scatter)
    def scatter_any(input_: Any, group: Any, input_split_sizes: Any = None, use_global_buffer: bool = False) -> Any:
        if input_split_sizes is None or group.size() == 1:
            return scatter(input_, group, None, use_global_buffer)
        if input_.shape[0] != sum(input_split_sizes):
            who = f"reduce-scatter of uneven pieces on rank {group.rank()} of {group.size()}"
            raise ValueError(
                f"{who}: {input_.shape[0]} rows; the sizes {list(input_split_sizes)} do not add up to them"
            )
        rows = max(input_split_sizes)
        pieces = torch.cat([padded(piece, rows) for piece in input_.split(input_split_sizes)])
        return (scatter(pieces, group) if rows else input_)[: input_split_sizes[group.rank()]]

    replace(f"{mappings}:{_GATHER}", gather_any)
    replace(f"{mappings}:{_SCATTER}", scatter_any)
