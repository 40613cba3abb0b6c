"""A checkpoint rewritten as another layout would have written it: planned first, then written a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from altup_moe.checkpoint.layout import layout_plan
from altup_moe.checkpoint.manifest import ITEM_BYTES
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.write import TensorSpec, WritePlan, write_checkpoint
from altup_moe.checkpoint.write_balancing import part_bytes
from altup_moe.config import RunConfig
from altup_moe.parallel.parameter_mapping import TensorSlice


@dataclass(frozen=True)
class Resharding:
    """What will be written.

    ``config``: the run under the new layout; ``specs``: every tensor; ``files``: which file holds what; ``left_out``:
    stored names that only the old layout can use.
    """

    config: RunConfig
    world_size: int
    specs: dict[str, TensorSpec]
    files: WritePlan
    left_out: tuple[str, ...]

    @property
    def file_bytes(self) -> dict[str, int]:
        """Bytes of tensors in each file."""
        return {name: sum(part_bytes(part, self.specs) for part in parts) for name, parts in self.files.items()}

    @property
    def rank_bytes(self) -> list[int]:
        """Bytes of tensors in each rank's files."""
        held = [0] * self.world_size
        for name, size in self.file_bytes.items():
            held[int(name.split("_")[1])] += size
        return held

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest tensor."""
        return max(math.prod(spec.shape) * ITEM_BYTES[spec.dtype] for spec in self.specs.values())


def plan_resharding(source: Checkpoint, config: RunConfig, world_size: int) -> Resharding:
    """What the ranks of a layout would hold of a checkpoint's tensors. Reads nothing but its manifest.

    Args:
        config: the checkpoint's run under the new layout, which `check_config` accepted for `world_size` ranks.
    """
    stored = source.manifest.tensors
    left_out = tuple(name for name in stored if name.startswith("rng/"))
    specs = {name: TensorSpec(t.shape, t.dtype) for name, t in stored.items() if name not in left_out}
    return Resharding(config, world_size, specs, layout_plan(config, world_size, specs), left_out)


def write_resharded(
    source: Checkpoint, resharding: Resharding, root: Path, tell: Callable[[int], None] = lambda count: None
) -> Path:
    """Write the planned checkpoint; it becomes the latest of `root`. On failure nothing of it is left.

    Args:
        root: directory of checkpoints.
        tell: called with the bytes of every piece that was read.
    Returns:
        The checkpoint's directory.
    """

    def read(name: str, tensor_slice: TensorSlice) -> np.ndarray:
        items = source.read(name, tensor_slice)
        tell(items.nbytes)
        return items

    head = replace(
        source.manifest,
        world_size=resharding.world_size,
        config=resharding.config.to_dict(),
        files={},
        tensors={},
    )
    return write_checkpoint(root, head, resharding.specs, resharding.files, read)
