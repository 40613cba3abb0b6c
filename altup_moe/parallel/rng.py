"""Random generators of a rank (for dropout), and their states as tensors."""

from __future__ import annotations

import torch
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor

from altup_moe.parallel.seeds import derived_seed
from altup_moe.parallel.topology import Topology


def seed_dropout(seed: int, topology: Topology) -> None:
    """Seed this rank's generators: equal on ranks with the same activations, different on all others."""
    # Context ranks hold different tokens, as data ranks do, so both count.
    samples_rank = parallel_state.get_data_parallel_rank(with_context_parallel=True)
    stream = derived_seed(seed, "dropout", topology.pipeline_rank, samples_rank) % (1 << 31)
    torch.manual_seed(stream)
    tensor_parallel.model_parallel_cuda_manual_seed(stream)


def rng_state() -> dict[str, Tensor]:
    """Generator -> state, of all that a step may use: ``cpu``, ``cuda`` (on a GPU), ``tracker.NAME`` (Megatron's)."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    tracker = tensor_parallel.get_cuda_rng_tracker().get_states()
    return states | {f"tracker.{name}": state for name, state in tracker.items()}


def set_rng_state(states: dict[str, Tensor]) -> None:
    """Restore what `rng_state` returned."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
    tracker = {name.removeprefix("tracker."): s for name, s in states.items() if name.startswith("tracker.")}
    if tracker:
        tensor_parallel.get_cuda_rng_tracker().set_states(tracker)
