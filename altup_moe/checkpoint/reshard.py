"""Rewrite a checkpoint as another layout would have written it: plan the files, then write one slice at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from altup_moe.checkpoint.layout import layout_plan
from altup_moe.checkpoint.manifest import ITEM_BYTES
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.write import TensorSpec, WritePlan, write_checkpoint
from altup_moe.checkpoint.write_balancing import part_bytes
from altup_moe.config import RunConfig
from altup_moe.config.resume_keys import changes_record, differing
from altup_moe.parallel.parameter_mapping import TensorSlice


@dataclass(frozen=True)
class Resharding:
    """The plan of a resharding.

    ``config``: the run under the new layout; ``specs``: every tensor; ``files``: the slices of each file;
    ``left_out``: stored names that only the old layout can use (random states).
    """

    config: RunConfig
    world_size: int
    specs: dict[str, TensorSpec]
    files: WritePlan
    left_out: tuple[str, ...]

    @property
    def file_bytes(self) -> dict[str, int]:
        """File name -> bytes of its tensors."""
        return {name: sum(part_bytes(part, self.specs) for part in parts) for name, parts in self.files.items()}

    @property
    def rank_bytes(self) -> list[int]:
        """Bytes of the tensors in each rank's files, by rank."""
        held = [0] * self.world_size
        for name, size in self.file_bytes.items():
            held[int(name.split("_")[1])] += size
        return held

    @property
    def largest_bytes(self) -> int:
        """Bytes of the largest tensor."""
        return max(math.prod(spec.shape) * ITEM_BYTES[spec.dtype] for spec in self.specs.values())


def plan_resharding(source: Checkpoint, config: RunConfig, world_size: int) -> Resharding:
    """Plan the files of a checkpoint under another layout, from its manifest alone.

    Args:
        config: the checkpoint's run under the new layout, which `check_config` accepted for `world_size` ranks.
    """
    stored = source.manifest.tensors
    left_out = tuple(name for name in stored if name.startswith("rng/"))
    specs = {name: TensorSpec(t.shape, t.dtype) for name, t in stored.items() if name not in left_out}
    return Resharding(config, world_size, specs, layout_plan(config, world_size, specs), left_out)


def changed_on_the_way(source: Checkpoint, config: RunConfig) -> list[dict[str, Any]]:
    """What a manifest says of a configuration that differs from its source's in more than the layout; [] of none."""
    found = differing(source.config, config, ("model", "run", "recorded"))
    return [changes_record(source.manifest.step, found)] if found else []


def write_resharded(
    source: Checkpoint, resharding: Resharding, root: Path, on_bytes: Callable[[int], None] = lambda count: None
) -> Path:
    """Write the planned checkpoint; it becomes the latest of `root`. A failure leaves no files.

    Args:
        root: directory of checkpoints.
        on_bytes: called with the size in bytes of every slice that was read.
    Returns:
        The checkpoint's directory.
    """

    def read(name: str, tensor_slice: TensorSlice) -> np.ndarray:
        items = source.read(name, tensor_slice)
        on_bytes(items.nbytes)
        return items

    head = replace(
        source.manifest,
        world_size=resharding.world_size,
        config=resharding.config.to_dict(),
        changes=[*source.manifest.changes, *changed_on_the_way(source, resharding.config)],
        files={},
        tensors={},
    )
    return write_checkpoint(root, head, resharding.specs, resharding.files, read)
