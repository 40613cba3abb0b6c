"""Gather whole weights on rank 0 while a run trains, under any layout.

The slices are those of `checkpoint.state.local_tensors`: what a save would write to the disk is sent to rank 0. Each
slice travels once, from the lowest rank that holds it; what rank 0 holds does not travel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from altup_moe.checkpoint.slices import coverage_problem, slice_shape
from altup_moe.checkpoint.state import LocalTensor
from altup_moe.checkpoint.tensors import TORCH_DTYPES
from altup_moe.checkpoint.write import NamedSlice, TensorSpec
from altup_moe.parallel.control_collectives import gather_json
from altup_moe.parallel.topology import Topology

KIND = "weights/"
"""Prefix of the stored names of weights and buffers."""


@dataclass(frozen=True)
class _Transfer:
    """A slice, the dtype of its tensor, and the rank that sends it."""

    part: NamedSlice
    dtype: str
    sender: int


class WeightGatherer:
    """Copies the weights of a run's layout into whole tensors on rank 0. One for each run: layouts do not change."""

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self._transfers: list[_Transfer] | None = None

    @torch.no_grad()
    def gather(self, held: Iterable[LocalTensor], targets: Mapping[str, Tensor] | None) -> None:
        """Write the present weights of all ranks into `targets`. Collective.

        Args:
            held: this rank's slices of weights and buffers (`local_tensors` without an optimizer).
            targets: on rank 0, global name -> whole tensor, of any dtype and device; None on the other ranks.
        Raises:
            AssertionError: names or shapes are not those of the run's model.
        """
        tensors = {each.part: each for each in held}
        if self._transfers is None:
            self._transfers = self._assign(tensors, targets)
        rank, device = self.topology.rank, self.topology.device
        for transfer in self._transfers:
            part = transfer.part
            if rank == transfer.sender and rank != 0:
                dist.send(_bytes(tensors[part].tensor), dst=0)
            elif rank == 0:
                assert targets is not None
                place = targets[part.name.removeprefix(KIND)][tuple(slice(a, b) for a, b in part.tensor_slice)]
                if transfer.sender == 0:
                    place.copy_(tensors[part].tensor)
                    continue
                values = torch.empty(slice_shape(part.tensor_slice), dtype=TORCH_DTYPES[transfer.dtype], device=device)
                dist.recv(_bytes(values), src=transfer.sender)
                place.copy_(values)

    def _assign(
        self, tensors: Mapping[NamedSlice, LocalTensor], targets: Mapping[str, Tensor] | None
    ) -> list[_Transfer]:
        mine = [[part.name, part.tensor_slice, each.spec.shape, each.spec.dtype] for part, each in tensors.items()]
        for part, each in tensors.items():
            # Rank 0 would wait for other bytes than are sent.
            expected = (slice_shape(part.tensor_slice), TORCH_DTYPES[each.spec.dtype])
            if (tuple(each.tensor.shape), each.tensor.dtype) != expected:
                found = f"{each.tensor.dtype} {list(each.tensor.shape)}, not {expected[1]} {list(expected[0])}"
                raise AssertionError(f"{part.name} on rank {self.topology.rank} is {found}")
        described = gather_json(mine, self.topology.device)
        transfers: dict[NamedSlice, _Transfer] = {}
        specs: dict[str, TensorSpec] = {}
        for rank, parts in enumerate(described):
            for name, tensor_slice, shape, dtype in parts:
                part = NamedSlice(name, tuple((a, b) for a, b in tensor_slice))
                specs[name] = TensorSpec(tuple(shape), dtype)
                transfers.setdefault(part, _Transfer(part, dtype, rank))
        if targets is not None:
            _check(specs, transfers, targets)
        return list(transfers.values())


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor's memory as bytes (a copy, if it is not contiguous): gloo and NCCL send bytes of every dtype."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _check(specs: Mapping[str, TensorSpec], transfers: Iterable[NamedSlice], targets: Mapping[str, Any]) -> None:
    """Raise AssertionError unless the slices make up the targets, each element once."""
    by_name: dict[str, list[NamedSlice]] = {}
    for part in transfers:
        by_name.setdefault(part.name, []).append(part)
    if odd := {name.removeprefix(KIND) for name in by_name} ^ set(targets):
        raise AssertionError(f"not both in the run and in the model: {', '.join(sorted(odd))}")
    for name, parts in by_name.items():
        shape = tuple(targets[name.removeprefix(KIND)].shape)
        problem = coverage_problem(shape, [part.tensor_slice for part in parts])
        if specs[name].shape != shape or problem:
            raise AssertionError(f"{name}: {specs[name].shape} on the ranks, {shape} in the model; {problem}")
