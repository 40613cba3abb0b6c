"""Rules of `spmd_types` for the collectives and kernels of a training step (see tests/spmd.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

# First: it looks up torch's factories by identity, and `parallel.cpu` replaces some of them later.
import spmd_types.checker  # isort: skip
import spmd_types as spmd
import torch
import torch.distributed as dist
from megatron.core import parallel_state as ps
from megatron.core.tensor_parallel import cross_entropy, layers, mappings
from megatron.core.tensor_parallel.random import CudaRNGStatesTracker
from megatron.core.transformer.moe import moe_utils, router
from spmd_types import I, P, R, V, rules
from torch import Tensor

from altup_moe.altup import mixing
from altup_moe.moe import grouped
from altup_moe.overlap import collectives


def axes() -> dict[str, Any]:
    """Groups of the mesh axes of more than one rank."""
    groups = {"tp": ps.get_tensor_model_parallel_group(), "cp": ps.get_context_parallel_group()}
    return {name: group for name, group in groups.items() if group.size() > 1}


def spanned(group: Any) -> list[str]:
    """Names of the axes that lie within a group (the group of tensor and context ranks spans both)."""
    if group.size() == 1:
        return []
    ranks = set(dist.get_process_group_ranks(group))
    return [name for name, axis in axes().items() if ranks.issuperset(dist.get_process_group_ranks(axis))]


def moves(sent: Tensor, out: Tensor, group: Any, accepts: tuple[Any, ...], becomes: Any) -> None:
    """The rule of a collective: what it accepts on its group's axes, and what comes of it. Other axes keep theirs."""
    rules.ignore(sent)
    types = dict(spmd.get_local_type(sent))
    for name in spanned(group):
        axis = spmd.normalize_axis(axes()[name])
        if types.get(axis) not in accepts:
            raise spmd.SpmdTypeError(f"{types.get(axis)} on {name}, where only {accepts} fits")
        types[axis] = becomes
    if out is not sent:
        spmd.assert_type(out, types)


def _linear(out, *, input, weight, bias, allreduce_dgrad, sequence_parallel, tp_group):
    # Gathers its input and scatters the gradient, or sums the input's gradient, or does neither; then multiplies.
    rules.ignore(input, weight)
    assert bias is None
    types = dict(spmd.get_local_type(input))
    for name in spanned(tp_group) if sequence_parallel or allreduce_dgrad else []:
        axis, expected = spmd.normalize_axis(axes()[name]), V if sequence_parallel else I
        if types[axis] is not expected:
            raise spmd.SpmdTypeError(f"a linear layer's input is {types[axis]} on {name}, not {expected}")
        types[axis] = R
    for axis, held in spmd.get_local_type(weight).items():
        if not {types[axis], held} <= {R, V}:
            raise spmd.SpmdTypeError(f"Invariant type on axis {axis} cannot mix: {types[axis]} input, {held} weight")
        types[axis] = V if V in (types[axis], held) else R
    spmd.assert_type(out, types)


def _cross_entropy(out, *, vocab_parallel_logits, target):
    rules.ignore(target)
    moves(vocab_parallel_logits, out, ps.get_tensor_model_parallel_group(), (V,), I)


def _balance_loss(out, *, output, aux_loss):
    # Its gradient is 1 on every rank: it has to be each rank's share of the loss.
    rules.ignore(output)
    group = ps.get_tensor_and_context_parallel_group()
    moves(aux_loss, aux_loss, group, (V, P), V)
    spmd.assert_type_like(out, output)


def _start(out, *, sent):
    rules.ignore(sent)
    spmd.assert_type_like(out, sent)


def _wait(out, *, sent, there):
    collective = there._collective
    summed, gathered = (isinstance(collective, kind) for kind in (collectives.ReduceScatter, collectives.AllGather))
    moves(sent, out, collective.group, (V, P) if summed else (V,), R if gathered else V)


def _gather(out, *, input_, group, tensor_parallel_output_grad):
    moves(input_, out, group, (V,), R if tensor_parallel_output_grad else I)


RULES: dict[type, Callable[..., None]] = {
    mappings._CopyToModelParallelRegion: lambda out, *, input_, group: moves(input_, out, group, (I,), R),
    mappings._ReduceFromModelParallelRegion: lambda out, *, input_, group: moves(input_, out, group, (V, P), I),
    mappings._GatherFromSequenceParallelRegion: _gather,
    mappings._ReduceScatterToSequenceParallelRegion: lambda out, *, input_, group: moves(input_, out, group, (V, P), V),
    mappings._AllToAll: lambda out, *, input, group: moves(input, out, group, (V,), V),
    layers.LinearWithGradAccumulationAndAsyncCommunication: _linear,
    cross_entropy._VocabParallelCrossEntropy: _cross_entropy,
    moe_utils.MoEAuxLossAutoScaler: _balance_loss,
    collectives._Start: _start,
    collectives._Wait: _wait,
}
LOCAL = (
    moe_utils.RouterGatingLinearFunction,
    mixing.OnePass,
    mixing.Read,
    mixing.CatchUp,
    mixing.WriteBack,
    grouped._Loop,
)
"""Functions without communication: their outputs have the type that a torch operation's would have."""


class _DataKeepsItsType(torch.overrides.TorchFunctionMode):
    """`parameter.data` has the parameter's type (Megatron's router moves it to the device before it multiplies)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func == torch.Tensor.data.__get__ and spmd.has_local_type(args[0]):  # type: ignore[attr-defined]
            spmd.assert_type_like(result, args[0])
        return result


@contextmanager
def checking() -> Iterator[None]:
    """Inside, every operation's types are checked; an untyped tensor is an error too."""
    for cls in LOCAL:
        spmd.register_local_autograd_function(cls)
    spmd.register_no_typecheck(CudaRNGStatesTracker.fork)  # It compares random states, no tensors of the step.
    with ExitStack() as patches:
        for cls, rule in RULES.items():
            patches.enter_context(mock.patch.object(cls, "spmd_typecheck", staticmethod(rule), create=True))
        for log in ("save_to_aux_losses_tracker", "get_moe_metrics_tracker"):
            # Megatron's log of losses (0.16.1, 0.19.2) outlives a step, and so would its types.
            patches.enter_context(mock.patch.object(router, log, mock.MagicMock(), create=True))
        patches.enter_context(_DataKeepsItsType())
        patches.enter_context(spmd_types.checker.typecheck())
        yield
