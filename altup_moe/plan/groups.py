"""The process groups of a rank as lists of ranks, computed from the layout alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from altup_moe.config import ParallelConfig
from altup_moe.parallel.rank_coordinates import RankCoordinates, all_rank_coordinates

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class World:
    """A layout on `size` ranks. A group is in ascending order and contains the rank itself."""

    parallel: ParallelConfig
    size: int

    @cached_property
    def all_coordinates(self) -> list[RankCoordinates]:
        """The coordinates of every rank."""
        return all_rank_coordinates(self.parallel, self.size)

    @cached_property
    def _dimensions(self) -> dict[str, tuple[int, int]]:
        """(size, distance of neighbouring ranks) of each dimension."""
        p, stage = self.parallel, self.size // self.parallel.pipeline
        dense, experts = p.tensor * p.context, p.expert_tensor * p.expert
        return {
            "tensor": (p.tensor, 1),
            "context": (p.context, p.tensor),
            "data": (stage // dense, dense),
            "expert_tensor": (p.expert_tensor, 1),
            "expert": (p.expert, p.expert_tensor),
            "expert_data": (stage // experts, experts),
            "pipeline": (p.pipeline, stage),
        }

    def _spread(self, coordinates: RankCoordinates, *dimensions: str) -> Ranks:
        """Ranks that differ from `coordinates` in these dimensions alone, which are named from the nearest ranks on."""
        ranks = [coordinates.rank]
        for name in dimensions:
            size, distance = self._dimensions[name]
            first = getattr(coordinates, name) * distance
            ranks = [rank + index * distance - first for index in range(size) for rank in ranks]
        return tuple(ranks)

    def tensor(self, coordinates: RankCoordinates) -> Ranks:
        """Tensor group: ranks that shard the same matrices."""
        return self._spread(coordinates, "tensor")

    def context(self, coordinates: RankCoordinates) -> Ranks:
        """Context group: ranks that share the same sequences."""
        return self._spread(coordinates, "context")

    def tensor_context(self, coordinates: RankCoordinates) -> Ranks:
        """Tensor and context ranks of one micro-batch on one stage."""
        return self._spread(coordinates, "tensor", "context")

    def data(self, coordinates: RankCoordinates) -> Ranks:
        """Data and context ranks: they hold the same dense weights."""
        return self._spread(coordinates, "context", "data")

    def data_alone(self, coordinates: RankCoordinates) -> Ranks:
        """Data ranks: they hold different samples, and the same part of each."""
        return self._spread(coordinates, "data")

    def expert(self, coordinates: RankCoordinates) -> Ranks:
        """Expert group: its ranks divide the experts among them."""
        return self._spread(coordinates, "expert")

    def expert_tensor(self, coordinates: RankCoordinates) -> Ranks:
        """Expert-tensor group: ranks that shard the same experts."""
        return self._spread(coordinates, "expert_tensor")

    def expert_and_tensor(self, coordinates: RankCoordinates) -> Ranks:
        """Expert and expert-tensor ranks together."""
        return self._spread(coordinates, "expert_tensor", "expert")

    def expert_data(self, coordinates: RankCoordinates) -> Ranks:
        """Ranks that hold the same expert weights."""
        return self._spread(coordinates, "expert_data")

    def stage(self, coordinates: RankCoordinates) -> Ranks:
        """All ranks of the pipeline stage."""
        return self._spread(coordinates, "tensor", "context", "data")

    def model(self, coordinates: RankCoordinates) -> Ranks:
        """One replica of the dense model: the tensor ranks of all stages."""
        return self._spread(coordinates, "tensor", "pipeline")

    def expert_model(self, coordinates: RankCoordinates) -> Ranks:
        """One replica of the experts: the expert and expert-tensor ranks of all stages."""
        return self._spread(coordinates, "expert_tensor", "expert", "pipeline")

    @cached_property
    def _everyone(self) -> Ranks:
        return tuple(range(self.size))

    def everyone(self) -> Ranks:
        """All ranks."""
        return self._everyone

    def neighbour(self, coordinates: RankCoordinates, offset: int) -> int:
        """The corresponding rank `offset` stages later; the last stage is followed by the first."""
        stage = self.size // self.parallel.pipeline
        return (coordinates.rank + offset * stage) % self.size
