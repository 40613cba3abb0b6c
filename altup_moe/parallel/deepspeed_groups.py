"""DeepSpeed on our process groups: the one place that knows its private names.

DeepSpeed keeps its groups in a module of its own, `deepspeed.utils.groups`, and makes them itself if it finds none: by
another rule than Megatron's, so that an expert's copies would not be where Megatron's all-to-all has put them. Here
that table is filled from a `Topology`. The package is optional and imported only when a run asks for it; the names
below are private, hence the range of versions (`config.packages.PACKAGES`).
"""

from __future__ import annotations

import os
from functools import partial
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from altup_moe.config import UserError
from altup_moe.config.packages import PACKAGES
from altup_moe.parallel.patches import replace
from altup_moe.parallel.release import at_end
from altup_moe.parallel.topology import Topology


def use_deepspeed(topology: Topology) -> Any:
    """The deepspeed module, on this topology's groups. Every rank calls it before a model of its is built.

    Raises:
        UserError: it is not installed, or another version is.
    """
    package = PACKAGES["deepspeed"]
    if problem := package.problem():
        raise UserError(f"deepspeed {problem}; {package.install}")
    if topology.device.type == "cpu":
        # Else every process warns that there is no GPU.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    deepspeed: Any = import_module("deepspeed")
    _quiet()
    if topology.device.type == "cpu":
        _set("deepspeed.ops", __compatible_ops__={**deepspeed.ops.__compatible_ops__, "deepspeed_shm_comm": False})
    backend = "gloo" if topology.device.type == "cpu" else "nccl"
    # Its communication module wraps the running torch.distributed; an earlier run of this process may have left one.
    _set("deepspeed.comm.comm", cdb=None)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    _fill_groups(topology)
    _set("deepspeed.moe.mappings", _gather_tokens=partial(_gather_tokens, topology))
    return deepspeed


def expert_group_name(topology: Topology) -> str:
    """The name under which deepspeed finds this topology's expert groups (a parameter's ``group_name``)."""
    return f"ep_size_{topology.expert_size}"


def _quiet() -> None:
    """Only warnings: by default every rank prints some hundred lines while an engine is made."""
    import_module("deepspeed.utils.logging").logger.setLevel("WARNING")


def _fill_groups(topology: Topology) -> None:
    name, ep, expt_dp = expert_group_name(topology), topology.groups.ep, topology.groups.expt_dp
    _set(
        "deepspeed.utils.groups",
        _EXPERT_PARALLEL_GROUP={name: ep},
        _EXPERT_PARALLEL_GROUP_RANKS={name: dist.get_process_group_ranks(ep)},
        _EXPERT_DATA_PARALLEL_GROUP={name: expt_dp},
        _EXPERT_DATA_PARALLEL_GROUP_RANKS={name: dist.get_process_group_ranks(expt_dp)},
        mpu=ModelParallelUnit(topology),
        expert_tensor_parallel_world_size=topology.expert_tensor_size,
        mesh_device=None,
        # A clone of an earlier run's world; it is made anew when asked for.
        _WORLD_GROUP=None,
    )


def _set(module: str, **values: Any) -> None:
    """Until the topology ends: then deepspeed refers to none of its groups any more."""
    for name, value in values.items():
        target = f"{module}:{name}"
        at_end(partial(replace, target, replace(target, value)))


class ModelParallelUnit:
    """Megatron's groups under the names that deepspeed asks of an `mpu`; `parallel_state` lacks half of them.

    Ranks that share a sequence (context parallelism) count as data-parallel ones: their gradients are averaged too.
    """

    def __init__(self, topology: Topology) -> None:
        g = topology.groups
        self._groups = {
            "model_parallel": g.mp,
            "tensor_model_parallel": g.tp,
            "pipeline_model_parallel": g.pp,
            "data_parallel": g.dp_cp,
        }

    def __getattr__(self, name: str) -> Any:
        """``get_KIND_group``, ``_world_size``, ``_rank``, ``_group_ranks`` or ``_src_rank``, for each kind of group."""
        if not name.startswith("_"):
            for kind, group in self._groups.items():
                match name.removeprefix(f"get_{kind}_") if name.startswith(f"get_{kind}_") else None:
                    case "group":
                        return lambda: group
                    case "world_size":
                        return group.size
                    case "rank":
                        return group.rank
                    case "group_ranks":
                        return lambda: dist.get_process_group_ranks(group)
                    case "src_rank":
                        return lambda: dist.get_process_group_ranks(group)[0]
        # deepspeed asks with hasattr what kind of mpu it was given.
        raise AttributeError(name)


def _gather_tokens(topology: Topology, input_: Tensor, dim: int = 0) -> Tensor:
    """deepspeed.moe.mappings' gather over tensor ranks along `dim`, also with gloo, which wants input and
    output of the same number of dimensions."""
    if topology.tensor_size == 1:
        return input_.contiguous()
    flat = input_.contiguous().view(-1)
    gathered = flat.new_empty(topology.tensor_size * flat.numel())
    dist.all_gather_into_tensor(gathered, flat, group=topology.groups.tp)
    pieces = gathered.view(topology.tensor_size, *input_.shape).unbind(0)
    return torch.cat(pieces, dim=dim)
