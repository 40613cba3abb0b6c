"""Which ranks form the groups of a rank, from its place."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from altup_moe.config import ParallelConfig
from altup_moe.parallel.rank_coordinates import Place, places

Ranks = tuple[int, ...]


@dataclass(frozen=True)
class World:
    """A layout on so many ranks. Groups are ascending ranks, a rank's own among them."""

    parallel: ParallelConfig
    size: int

    @cached_property
    def places(self) -> list[Place]:
        """Every rank's place."""
        return places(self.parallel, self.size)

    @cached_property
    def _tables(self) -> dict[tuple[str, ...], dict[tuple[int, ...], Ranks]]:
        return {}

    def _alike(self, place: Place, *same: str) -> Ranks:
        """Ranks whose places agree with `place` in these."""
        if same not in self._tables:
            groups: dict[tuple[int, ...], list[int]] = {}
            for p in self.places:
                groups.setdefault(tuple(getattr(p, key) for key in same), []).append(p.rank)
            self._tables[same] = {key: tuple(ranks) for key, ranks in groups.items()}
        return self._tables[same][tuple(getattr(place, key) for key in same)]

    def tensor(self, place: Place) -> Ranks:
        """Those that share its layers' matrices."""
        return self._alike(place, "pipeline", "data", "context")

    def context(self, place: Place) -> Ranks:
        """Those that share its sequences."""
        return self._alike(place, "pipeline", "data", "tensor")

    def tensor_context(self, place: Place) -> Ranks:
        """Those that share a micro-batch's tokens on a stage."""
        return self._alike(place, "pipeline", "data")

    def data(self, place: Place) -> Ranks:
        """Those that hold the same dense weights (data and context ranks)."""
        return self._alike(place, "pipeline", "tensor")

    def expert(self, place: Place) -> Ranks:
        """Those among which the experts are shared out."""
        return self._alike(place, "pipeline", "expert_data", "expert_tensor")

    def expert_tensor(self, place: Place) -> Ranks:
        """Those that share its experts' matrices."""
        return self._alike(place, "pipeline", "expert_data", "expert")

    def expert_and_tensor(self, place: Place) -> Ranks:
        """Both together: those whose tokens meet."""
        return self._alike(place, "pipeline", "expert_data")

    def expert_data(self, place: Place) -> Ranks:
        """Those that hold the same expert weights."""
        return self._alike(place, "pipeline", "expert", "expert_tensor")

    def stage(self, place: Place) -> Ranks:
        """Its pipeline stage."""
        return self._alike(place, "pipeline")

    def model(self, place: Place) -> Ranks:
        """One replica of the dense model: tensor ranks of all stages."""
        return self._alike(place, "data", "context")

    def expert_model(self, place: Place) -> Ranks:
        """One replica of the experts: expert and expert-tensor ranks of all stages."""
        return self._alike(place, "expert_data")

    def everyone(self) -> Ranks:
        """The world."""
        return tuple(range(self.size))

    def neighbour(self, place: Place, offset: int) -> int:
        """The rank `offset` stages on, around the end."""
        stage = self.size // self.parallel.pipeline
        return (place.rank + offset * stage) % self.size
