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
    def _tables(self) -> dict[tuple[str, ...], dict[tuple[int, ...], Ranks]]:
        return {}

    def _alike(self, coordinates: RankCoordinates, *same: str) -> Ranks:
        """Ranks whose coordinates `same` equal those of `coordinates`."""
        if same not in self._tables:
            groups: dict[tuple[int, ...], list[int]] = {}
            for p in self.all_coordinates:
                groups.setdefault(tuple(getattr(p, key) for key in same), []).append(p.rank)
            self._tables[same] = {key: tuple(ranks) for key, ranks in groups.items()}
        return self._tables[same][tuple(getattr(coordinates, key) for key in same)]

    def tensor(self, coordinates: RankCoordinates) -> Ranks:
        """Tensor group: ranks that shard the same matrices."""
        return self._alike(coordinates, "pipeline", "data", "context")

    def context(self, coordinates: RankCoordinates) -> Ranks:
        """Context group: ranks that share the same sequences."""
        return self._alike(coordinates, "pipeline", "data", "tensor")

    def tensor_context(self, coordinates: RankCoordinates) -> Ranks:
        """Tensor and context ranks of one micro-batch on one stage."""
        return self._alike(coordinates, "pipeline", "data")

    def data(self, coordinates: RankCoordinates) -> Ranks:
        """Data and context ranks: they hold the same dense weights."""
        return self._alike(coordinates, "pipeline", "tensor")

    def data_alone(self, coordinates: RankCoordinates) -> Ranks:
        """Data ranks: they hold different samples, and the same part of each."""
        return self._alike(coordinates, "pipeline", "tensor", "context")

    def expert(self, coordinates: RankCoordinates) -> Ranks:
        """Expert group: its ranks divide the experts among them."""
        return self._alike(coordinates, "pipeline", "expert_data", "expert_tensor")

    def expert_tensor(self, coordinates: RankCoordinates) -> Ranks:
        """Expert-tensor group: ranks that shard the same experts."""
        return self._alike(coordinates, "pipeline", "expert_data", "expert")

    def expert_and_tensor(self, coordinates: RankCoordinates) -> Ranks:
        """Expert and expert-tensor ranks together."""
        return self._alike(coordinates, "pipeline", "expert_data")

    def expert_data(self, coordinates: RankCoordinates) -> Ranks:
        """Ranks that hold the same expert weights."""
        return self._alike(coordinates, "pipeline", "expert", "expert_tensor")

    def stage(self, coordinates: RankCoordinates) -> Ranks:
        """All ranks of the pipeline stage."""
        return self._alike(coordinates, "pipeline")

    def model(self, coordinates: RankCoordinates) -> Ranks:
        """One replica of the dense model: the tensor ranks of all stages."""
        return self._alike(coordinates, "data", "context")

    def expert_model(self, coordinates: RankCoordinates) -> Ranks:
        """One replica of the experts: the expert and expert-tensor ranks of all stages."""
        return self._alike(coordinates, "expert_data")

    def everyone(self) -> Ranks:
        """All ranks."""
        return tuple(range(self.size))

    def neighbour(self, coordinates: RankCoordinates, offset: int) -> int:
        """The corresponding rank `offset` stages later; the last stage is followed by the first."""
        stage = self.size // self.parallel.pipeline
        return (coordinates.rank + offset * stage) % self.size
