"""Write the checkpoint of a larger model from a smaller model's, one tensor at a time, by the rules of `rules.py`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from altup_moe.checkpoint.grow.rules import Growth, Rule, rule_of
from altup_moe.checkpoint.reshard import changed_on_the_way
from altup_moe.checkpoint.source import HALF_DTYPES, Checkpoint
from altup_moe.checkpoint.tensors import TORCH_DTYPES, items, load_tensor
from altup_moe.checkpoint.write import TensorSpec, single_process_plan, write_checkpoint
from altup_moe.config.checks import smallest_world
from altup_moe.parallel.parameter_mapping import TensorSlice
from altup_moe.parallel.parameter_names import global_shapes, is_buffer

GRADIENT_POWER = {"exp_avg": 1, "exp_avg_sq": 2}
"""Adam's state -> the power of the gradient that it is proportional to."""


@dataclass(frozen=True)
class Grown:
    """A grown checkpoint.

    ``carried``: number of tensors whose optimizer state was kept; ``reset``: reason -> number of tensors whose state
    starts from zero. Both are empty without optimizer state.
    """

    directory: Path
    carried: int
    reset: Mapping[str, int]


def grow_checkpoint(source: Checkpoint, growth: Growth, root: Path) -> Grown:
    """Write the grown checkpoint into `root`, a directory of checkpoints. The growth must be a checked one.

    Counters and the fingerprint of the data are the source's; random streams are dropped.

    Raises:
        OSError: from the file system; no files remain then.
    """
    shapes = global_shapes(growth.target)
    rules = {name: rule_of(name, shape, growth) for name, shape in shapes.items()}
    carried = _carries(source, growth)
    specs = _specs(source, rules, shapes, carried)
    head = replace(
        source.manifest,
        config=growth.target.to_dict(),
        changes=[*source.manifest.changes, *changed_on_the_way(source, growth.target)],
        world_size=smallest_world(growth.target.parallel),
        files={},
        tensors={},
    )

    def read(stored: str, tensor_slice: TensorSlice) -> np.ndarray:
        # The plan has whole tensors only.
        kind, _, name = stored.partition("/")
        tensor = grown_tensor(source, rules[name], kind, shapes[name])
        if tuple(tensor.shape) != shapes[name]:
            raise AssertionError(f"the rule for {name} gives {tuple(tensor.shape)}, not {shapes[name]}")
        return items(tensor.to(TORCH_DTYPES[specs[stored].dtype]).contiguous())

    directory = write_checkpoint(root, head, specs, single_process_plan(specs), read)
    trained = [rules[name] for name in shapes if not is_buffer(name)] if carried else []
    reset = Counter(rule.why for rule in trained if rule.gradient is None)
    return Grown(directory, len(trained) - reset.total(), reset)


def grown_tensor(source: Checkpoint, rule: Rule, kind: str, shape: tuple[int, ...]) -> Tensor:
    """A stored tensor of the grown model, fp32. ``kind``: weights, main, exp_avg or exp_avg_sq."""
    if kind in GRADIENT_POWER:
        if rule.gradient is None:
            return torch.zeros(shape)
        return rule.moment(load_tensor(source, f"{kind}/{rule.source}").float(), GRADIENT_POWER[kind])
    if rule.source is None:
        return rule.value(torch.empty(0))
    # Half-precision weights are roundings of their fp32 copies: noise must be added once, before rounding.
    precise = f"main/{rule.source}"
    stored = precise if precise in source.manifest.tensors else f"weights/{rule.source}"
    return rule.value(load_tensor(source, stored).float())


def _carries(source: Checkpoint, growth: Growth) -> bool:
    """Whether optimizer state is kept: only Adam's. No rule exists for Adafactor's factored state."""
    optimizers = {source.manifest.config.get("optim", {}).get("optimizer", "adamw"), growth.target.optim.optimizer}
    return source.manifest.has_optimizer and optimizers == {"adamw"}


def _specs(
    source: Checkpoint, rules: Mapping[str, Rule], shapes: Mapping[str, tuple[int, ...]], carried: bool
) -> dict[str, TensorSpec]:
    """Stored name -> shape and dtype, ordered by kind."""
    stored = source.manifest.tensors
    usual = stored["weights/model.embed_tokens.weight"].dtype

    def dtype(name: str) -> str:
        origin = rules[name].source
        if origin is not None:
            return stored[f"weights/{origin}"].dtype
        return "F32" if ".altup." in name or is_buffer(name) else usual

    specs = {f"weights/{name}": TensorSpec(shape, dtype(name)) for name, shape in shapes.items()}
    trained = {name: shape for name, shape in shapes.items() if not is_buffer(name)}
    if carried:
        halves = {name: shape for name, shape in trained.items() if dtype(name) in HALF_DTYPES}
        specs |= {f"main/{name}": TensorSpec(shape, "F32") for name, shape in halves.items()}
        specs |= {
            f"{kind}/{name}": TensorSpec(shape, "F32") for kind in GRADIENT_POWER for name, shape in trained.items()
        }
    return specs
