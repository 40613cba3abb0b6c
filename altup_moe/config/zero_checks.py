"""Table of the options that train.engine deepspeed does not support. `checks.py` checks that it is installed."""

from __future__ import annotations

from typing import get_args

from altup_moe.altup.shape import has_steps
from altup_moe.altup.variants import find_variant
from altup_moe.config.errors import ConfigError
from altup_moe.config.schema import RunConfig, ZeroStage


def check_zero(config: RunConfig) -> None:
    """Raise ConfigError for the first value that does not fit the engine deepspeed."""
    t, p, stage = config.train, config.parallel, config.parallel.zero_stage
    wide = has_steps(config.altup.width, config.altup.variant, config.altup.correct)
    strided = config.sequence.stride > 1 and config.sequence.method == "altup"
    # Deferred, a layer's static weights are read in the next one too: two recomputed pieces each finish a gradient.
    deferred = config.overlap.mixing == "deferred" and not find_variant(config.altup.variant).per_token
    twice = wide and deferred and t.recompute == "full"
    # Where attention is recomputed, so is the bias on its scores, whose table all layers of a stack read.
    shared = config.model.architecture.shared_bias and t.recompute != "none"
    refused: list[tuple[bool, str, object, str]] = [
        # Its gradient clipping treats the experts of all expert-parallel ranks as replicas of each other.
        (
            stage not in get_args(ZeroStage),
            "parallel.zero_stage",
            stage,
            "without ZeRO fp32 gradients are clipped wrongly under experts; 1, 2, 3 would fit",
        ),
        (p.pipeline > 1, "parallel.pipeline", p.pipeline, "deepspeed is not proved equal in a pipeline; 1 would fit"),
        (
            p.distributed_optimizer,
            "parallel.distributed_optimizer",
            True,
            "is megatron's sharding, deepspeed's is parallel.zero_stage; false would fit",
        ),
        (
            p.overlap_grad_reduce,
            "parallel.overlap_grad_reduce",
            True,
            "is megatron's, deepspeed reduces after the backward pass; false would fit",
        ),
        (stage == 3 and config.moe.num_experts > 0, "parallel.zero_stage", 3, "not with experts; 1, 2 would fit"),
        # It gathers a layer's weights when the layer is called, and chunks use the output layer's matrix by itself.
        (
            stage == 3 and t.loss_chunk is not None,
            "train.loss_chunk",
            t.loss_chunk,
            "not with zero_stage 3; null would fit",
        ),
        # Its buffer of weights is of one dtype, and coefficients are fp32.
        (
            stage == 3 and (wide or strided) and t.precision != "fp32",
            "parallel.zero_stage",
            3,
            f"with altup.width or sequence.stride above 1 needs train.precision fp32 ({t.precision}); 1, 2 would fit",
        ),
        (
            stage > 1 and shared,
            "train.recompute",
            t.recompute,
            f"with model.arch {config.model.arch} needs parallel.zero_stage 1 ({stage}); none would fit",
        ),
        (
            stage > 1 and twice,
            "train.recompute",
            "full",
            f"needs overlap.mixing inline or parallel.zero_stage 1 ({stage}); none, selective would fit",
        ),
    ]
    for wrong, key, value, fits in refused:
        if wrong:
            raise ConfigError(key, value, fits)
