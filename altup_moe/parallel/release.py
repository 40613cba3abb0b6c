"""What keeps a model and its process groups alive after their topology has ended, and how it lets them go.

A process group's threads (gloo: two a group, and one a device) end with the last reference to it. Megatron (0.16.1 and
0.19.2) holds such references where neither `destroy_model_parallel` nor Python's garbage collector finds them;
`release` drops them. What else is to be dropped at the end registers with `at_end`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import ref

import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.common.embeddings import RotaryEmbedding, YarnRotaryEmbedding
from megatron.core.transformer.moe import moe_utils

from altup_moe.parallel.patches import original, replace

_at_end: list[Callable[[], None]] = []


def at_end(action: Callable[[], None]) -> None:
    """Have an action called when the topology in use ends, the last one first."""
    _at_end.append(action)


def end_with_topology(model: Any) -> None:
    """Take the gradient hooks off a `DistributedDataParallel` when the topology ends."""
    at_end(partial(_remove_gradient_hooks, ref(model)))


def _remove_gradient_hooks(model: ref[Any]) -> None:
    """The model owns autograd nodes, and these own hooks that refer to it: a cycle through C++, never collected."""
    wrapped = model()
    for node in wrapped.grad_accs if wrapped is not None else ():
        # All hooks of a node are in one dictionary; the handle of one more hook leads there.
        node.register_hook(_nothing).hooks_dict_ref().clear()


def _nothing(*args: Any) -> None:
    """A hook that does nothing."""


def groups() -> list[dist.ProcessGroup]:
    """The process groups that this process is in, in the order in which they were made."""
    return list(dist.distributed_c10d._world.pg_map)


def release(keep: list[dist.ProcessGroup]) -> None:
    """Destroy all process groups but `keep`, and drop what refers to them.

    A model that the caller still refers to keeps its groups' threads until it is gone and garbage is collected.
    """
    while _at_end:
        _at_end.pop()()
    _empty_caches()
    parallel_state.destroy_model_parallel()
    _forget_groups()
    for group in reversed(groups()):
        if group not in keep:
            dist.destroy_process_group(group)
    gc.collect()


def _empty_caches() -> None:
    """Rotary tables by module (lru_cache on a method), losses by layer (with their groups) and their scale, which may
    lie on another device or have another shape than the next run's, dropout's streams."""
    for kind in (RotaryEmbedding, YarnRotaryEmbedding):
        for method in vars(kind).values():
            if hasattr(method, "cache_clear"):
                method.cache_clear()
    if hasattr(moe_utils, "get_moe_metrics_tracker"):
        # 0.19.2; its `clear` would keep the tensors, sized for this model's layers.
        moe_utils.get_moe_metrics_tracker()._metrics.clear()
    else:
        moe_utils.get_moe_layer_wise_logging_tracker().clear()
    replace("megatron.core.transformer.moe.moe_utils:MoEAuxLossAutoScaler.main_loss_backward_scale", None)
    tensor_parallel.get_cuda_rng_tracker().reset()


def _forget_groups() -> None:
    """`destroy_model_parallel` leaves some of parallel_state's variables as they are. In deepspeed, defaults of some
    arguments are the world in which it was imported; None stands for the one in use."""
    for name, value in vars(parallel_state).items():
        if isinstance(value, dist.ProcessGroup):
            setattr(parallel_state, name, None)
    if "deepspeed.comm.torch" in sys.modules:
        for name in ("barrier", "monitored_barrier"):
            target = f"deepspeed.comm.torch:TorchBackend.{name}.__defaults__"
            replace(target, (None, *original(target)[1:]))
