"""Types of a training step, checked on one process by `spmd_types` and torch's fake process group.

On each mesh axis (tensor, context) a tensor is Replicate, Invariant, Varying or Partial, and its type says what its
gradient is: of Replicate Partial, of Invariant Invariant, of Varying Varying. A parameter's type is taken from what is
done with its gradient: Replicate if the step sums it over the axis, Varying if the axis' ranks hold different parts,
Invariant if neither. So a gradient that is partial and never summed is an Invariant parameter that meets a Varying
activation, which is a type error. Values play no part: the fake group moves nothing.

What it cannot see: a sum where the parts were already equal, a wrong factor, a missing collective whose absence leaves
all types as they are (attention that does not gather keys). Parity with the reference sees those.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import Any
from unittest import mock

import spmd_types as spmd
import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from spmd_types import I, R, V
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from altup_moe.config import RunConfig
from altup_moe.model.build import build_model
from altup_moe.moe.records import RecordsRouting
from altup_moe.parallel.topology import Topology, topology
from altup_moe.train.optim import build_optimizer
from altup_moe.train.routing import begin_step
from tests.distributed.cases import skewed, world_size
from tests.distributed.gradients import batch_of
from tests.spmd_rules import axes, checking, spanned

FACTORS = {"tp": 2.0, "cp": 3.0}
"""By what a stand-in for a sum over an axis multiplies: a gradient's factor then names the axes it was summed over."""


def summed_over(chunk: DistributedDataParallel) -> dict[str, set[str]]:
    """Over which axes a step's reduction sums the gradient of each parameter, by parameter name.

    Megatron's own reduction runs twice on gradients of ones, with the fake group's sums (which change nothing) and
    with sums that multiply by their axes' factors.
    """
    real = dist.all_reduce

    def multiplies(tensor: Tensor, op: Any = None, group: Any = None, async_op: bool = False) -> Any:
        if tensor.is_floating_point():
            for name in spanned(group):
                tensor.mul_(FACTORS[name])
        return real(tensor, group=group, async_op=async_op)

    def reduced() -> dict[str, Tensor]:
        for buffer in chunk.buffers + chunk.expert_parallel_buffers:
            buffer.grad_data.fill_(1.0)
        finalize_model_grads([chunk], torch.tensor(8, dtype=torch.int))
        return {name: p.main_grad.clone() for name, p in chunk.module.named_parameters()}

    plain = reduced()
    with mock.patch.object(dist, "all_reduce", multiplies):
        marked = reduced()
    found = {}
    for name, gradient in marked.items():
        low, high = (gradient / plain[name]).aminmax()
        factor = round(low.item())
        assert max(abs(low - factor), abs(high - factor)) < 1e-3, (name, low, high)
        found[name] = {axis for axis, by in FACTORS.items() if factor % by == 0}
        assert factor == torch.tensor([FACTORS[axis] for axis in found[name]]).prod(), f"{name}: summed twice"
    return found


def held_apart(name: str, parameter: Tensor, topo: Topology) -> set[str]:
    """Axes whose ranks hold different parts of a parameter."""
    if ".experts." in name:
        return {*spanned(topo.groups.ep), *spanned(topo.groups.expt_tp)}
    return {"tp"} & set(axes()) if parameter.tensor_model_parallel else set()  # type: ignore[attr-defined]


def type_parameters(chunk: DistributedDataParallel, topo: Topology) -> None:
    """Give every parameter its type. Raises SpmdTypeError where parts that differ would be summed."""
    summed = summed_over(chunk)
    for name, parameter in chunk.module.named_parameters():
        apart = held_apart(name, parameter, topo)
        if apart & summed[name]:
            raise spmd.SpmdTypeError(f"gradients of different parts of {name} are summed over {apart & summed[name]}")
        spmd.assert_type(parameter, {a: V if a in apart else R if a in summed[name] else I for a in axes()})


def type_the_rest(chunk: DistributedDataParallel) -> None:
    """Tensors that modules hold beside parameters: the same everywhere, but for each rank's records of routing."""
    for module in chunk.module.modules():
        if isinstance(module, RecordsRouting):
            for tensor in vars(module.record).values():
                spmd.assert_type(tensor, dict.fromkeys(axes(), V))
        for owner in (module, getattr(module, "token_dispatcher", module)):
            for tensor in (*vars(owner).values(), *module._buffers.values()):
                if isinstance(tensor, Tensor) and not spmd.has_local_type(tensor):
                    spmd.assert_type(tensor, dict.fromkeys(axes(), R))


def loss_types(
    config: RunConfig, layout: str, fault: Callable[[DistributedDataParallel], object] = lambda chunk: None
) -> dict[str, Any]:
    """Types, by axis, of the loss that rank 0 of a fake world differentiates. `fault` may spoil the model first.

    Raises:
        SpmdTypeError: a gradient would stay partial, or would be summed where it must not be.
    """
    # In a context of its own: a step that fails leaves work that it posted for later.
    return Context().run(_loss_types, config, layout, fault)


def _loss_types(config: RunConfig, layout: str, fault: Callable[[DistributedDataParallel], object]) -> dict[str, Any]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size(layout))
    try:
        # The fake group gathers nothing that could be compared.
        agreed = mock.patch("altup_moe.overlap.collectives.agree_on_sizes")
        with agreed, topology(config.parallel) as topo:
            (chunk,) = build_model(config, topo, skewed)
            build_optimizer([chunk], config)
            fault(chunk)
            batch = batch_of(config, 2)
            begin_step([chunk], [batch], config, topo)
            batch = batch.on_context_rank(topo.context_size)
            with spmd.set_current_mesh({name: spmd.MeshAxis.of(group) for name, group in axes().items()}):
                type_parameters(chunk, topo)
                type_the_rest(chunk)
                for tensor in (batch.tokens, batch.labels, batch.loss_mask, *batch.model_inputs.values()):
                    spmd.assert_type(tensor, {name: V if name == "cp" else R for name in axes()})
                with checking():
                    loss = (chunk.module(batch.tokens, batch.labels, **batch.model_inputs) * batch.loss_mask).sum()
            types = spmd.get_local_type(loss)
            return {name: types[spmd.normalize_axis(group)] for name, group in axes().items()}
    finally:
        dist.destroy_process_group()
