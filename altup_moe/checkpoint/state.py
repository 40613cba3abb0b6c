"""Everything a rank needs to go on bit for bit, as named tensors, and back.

Model tensors carry the global pieces they hold (in the metadata), so that `assemble` can put the whole model together.
Optimizer state is this layout's own: the tensors of each of Megatron's inner optimizers in order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from altup_moe.checkpoint.store import RankState
from altup_moe.config import ConfigError
from altup_moe.parallel.names import NamedTensor
from altup_moe.parallel.rng import rng_state, set_rng_state


def _inner_optimizers(optimizer: Any) -> list[torch.optim.Optimizer]:
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    return [part.optimizer for part in chained if getattr(part, "optimizer", None) is not None]


def _optimizer_tensors(optimizer: Any) -> dict[str, Tensor]:
    """Main parameters and moments: ``optimizer/CHAIN/GROUP/INDEX/NAME``."""
    tensors = {}
    for chain, inner in enumerate(_inner_optimizers(optimizer)):
        for number, group in enumerate(inner.param_groups):
            for index, parameter in enumerate(group["params"]):
                prefix = f"optimizer/{chain}/{number}/{index}"
                tensors[f"{prefix}/main"] = parameter.data
                for name, value in inner.state.get(parameter, {}).items():
                    if torch.is_tensor(value):
                        tensors[f"{prefix}/{name}"] = value
    return tensors


def collect(named: Iterable[NamedTensor], optimizer: Any, scheduler: Any) -> RankState:
    """This rank's state after a step."""
    named = list(named)
    tensors = {f"model/{entry.key}": entry.tensor.data for entry in named}
    tensors |= _optimizer_tensors(optimizer)
    tensors |= {f"rng/{name}": state for name, state in rng_state().items()}
    pieces = {
        f"model/{entry.key}": [{"name": p.name, "shape": p.shape, "box": p.box, "local": p.local} for p in entry.pieces]
        for entry in named
    }
    return RankState(tensors, {"pieces": pieces, "scheduler_steps": scheduler.num_steps})


@torch.no_grad()
def restore(state: RankState, named: Iterable[NamedTensor], optimizer: Any, scheduler: Any) -> None:
    """Put a rank's state back. The layout must be the one it was collected under.

    Raises:
        ConfigError: the checkpoint lacks a tensor of this layout or has it in another shape.
    """
    stored = dict(state.tensors)
    for entry in named:
        _copy(entry.tensor.data, stored, f"model/{entry.key}")
    for chain, inner in enumerate(_inner_optimizers(optimizer)):
        for number, group in enumerate(inner.param_groups):
            for index, parameter in enumerate(group["params"]):
                prefix = f"optimizer/{chain}/{number}/{index}"
                _copy(parameter.data, stored, f"{prefix}/main")
                moments = [key for key in stored if key.startswith(f"{prefix}/")]
                inner.state[parameter] = {
                    key.rsplit("/", 1)[1]: _like(stored[key], parameter) for key in moments if not key.endswith("/main")
                }
    set_rng_state({key.removeprefix("rng/"): value for key, value in stored.items() if key.startswith("rng/")})
    steps = int(state.meta["scheduler_steps"])
    scheduler.step(steps - scheduler.num_steps)


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    # AdamW's step counter stays where it was: a scalar on the CPU.
    return value.to(parameter.device) if value.shape == parameter.shape else value


def _copy(target: Tensor, stored: dict[str, Tensor], key: str) -> None:
    value = stored.get(key)
    if value is None or value.shape != target.shape:
        found = "no such tensor" if value is None else f"shape {tuple(value.shape)}"
        raise ConfigError("checkpoint.resume", True, f"the checkpoint has {found} for {key} {tuple(target.shape)}")
    target.copy_(value)
