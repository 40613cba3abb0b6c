"""Options of a growth beside the configuration of the grown run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GrowOptions:
    """Make a trained model larger without changing what it computes, to train on from there."""

    split_experts: bool = False
    """More experts are parts of the source's, cut along moe.ffn_hidden_size: as many parameters and FLOPs as before."""
    expert_noise: float = 0.0
    """Noise on copied experts, as a share of a tensor's standard deviation (the first copy has none); 0 is exact.
    Copies of an expert are chosen together and stay equal without it; those of a dense layer come apart by routing."""
    coefficient_noise: float = 0.0
    """Standard deviation of noise on the AltUp coefficients of a wider stream; 0 is exact. Copies of a block come
    apart in training if a layer computes on one; the others (altup.select same, few layers) stay equal without it."""
    seed: int | None = None
    """Seed of new weights and noise; None is train.seed."""
    check: bool = True
    """Compare the logits of both models (both must fit into memory, one after the other)."""
