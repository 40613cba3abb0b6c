"""Megatron's gradient buffers: which gradients are reduced together, and how the distributed optimizer pads them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from altup_moe.config import RunConfig
from altup_moe.plan.parameters import HeldSum

PARAMETER_BYTES = {"fp32": 4, "bf16": 2}
"""Bytes of a parameter, by `train.precision`. Gradient sums and AltUp coefficients are always fp32."""


@dataclass(frozen=True)
class Buffer:
    """One bucket of gradients.

    ``size``: numbers, padding included. ``expert``: whether it holds experts. ``calls``: collectives that it needs; 0
    if the call of another bucket covers it.
    """

    size: int
    parameter_bytes: int
    expert: bool
    calls: int


def buffers(config: RunConfig, held: Sequence[HeldSum], data_ranks: int, expert_data_ranks: int) -> Iterator[Buffer]:
    """The buckets of a rank that holds `held`, one for each chunk, kind (dense or expert) and parameter type.

    Overlapped reduction splits large buckets. That changes only a few bytes of padding, so it is not counted.
    """
    own = PARAMETER_BYTES[config.train.precision]
    for chunk in sorted({h.chunk for h in held}):
        for expert, ranks in ((False, data_ranks), (True, expert_data_ranks)):
            mine = [h for h in held if h.chunk == chunk and h.expert == expert]
            # Buckets of the second and later chunks share one call.
            together = False
            for kind in sorted({4 if h.coefficient else own for h in mine}):
                for bucket in _buckets(config, [h for h in mine if (4 if h.coefficient else own) == kind]):
                    yield Buffer(_padded(config, bucket, ranks), kind, expert, 0 if together else 1)
                    together = chunk > 0


def _buckets(config: RunConfig, held: Sequence[HeldSum]) -> Iterator[Sequence[HeldSum]]:
    """With the distributed optimizer, an embedding table that two stages share has its own bucket."""
    alone = [config.parallel.distributed_optimizer and shared_table(config, h) for h in held]
    yield from ([h] for h, own in zip(held, alone, strict=True) if own)
    rest = [h for h, own in zip(held, alone, strict=True) if not own]
    if rest:
        yield rest


def shared_table(config: RunConfig, held: HeldSum) -> bool:
    """Whether it is the embedding table that both the first and the last stage hold."""
    return config.model.share_embeddings_and_output_weights and config.parallel.pipeline > 1 and held.table


def _padded(config: RunConfig, held: Sequence[HeldSum], ranks: int) -> int:
    """Padded size, as in megatron.core.distributed.param_and_grad_buffer: all ranks have equal shares."""
    if not config.parallel.distributed_optimizer:
        return sum(h.size for h in held)
    divisor = math.lcm(ranks, 128)
    return -(-sum(h.aligned for h in held) // divisor) * divisor
