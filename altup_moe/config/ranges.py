"""Table of the range of every numeric field. `checks.py` checks values against each other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from altup_moe.config.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """An interval of finite numbers, closed unless an end is marked open.

    ``wide``: its ends are there for what numbers can be held, and messages name only the one that was passed.
    """

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    wide: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high or math.isinf(self.high) else value <= self.high
        return above and below

    def __str__(self) -> str:
        if self.wide or math.isinf(self.high):
            return "must be above 0" if 0 < self.low < 1 or self.open_low else f"must be at least {self.low:g}"
        ends = f"{'(' if self.open_low else '['}{self.low:.12g}, {self.high:.12g}{')' if self.open_high else ']'}"
        return f"must lie in {ends}"

    def check(self, key: str, value: float) -> None:
        """Raise ConfigError if `value` lies outside."""
        if value in self:
            return
        # Not of an integer, which may be too large for a float.
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(key, value, f"{self}, and finite")
        too_large = self.wide and value > self.low
        raise ConfigError(key, value, f"must be at most {self.high:.12g}" if too_large else str(self))


LARGEST_COUNT = 2**31 - 1
"""Libraries keep sizes in 32 bits here and there."""
SMALLEST, LARGEST = 1e-37, 1e37
"""Ends of what fp32 can hold, with room for a product."""
COUNT = Range(1, LARGEST_COUNT, wide=True)
COUNT_OR_ZERO = Range(0, LARGEST_COUNT, wide=True)
STEPS = Range(1, 10**12, wide=True)
"""Steps and samples of a run: what checkpoints accept as a count, with room."""
STEPS_OR_ZERO = Range(0, 10**12, wide=True)
LAYERS = Range(1, 2000, wide=True)
"""Twice the deepest Transformer known (DeepNet, arXiv 2203.00555)."""
POSITIVE = Range(SMALLEST, LARGEST, wide=True)
NOT_NEGATIVE = Range(0, LARGEST, wide=True)
RATE = Range(SMALLEST, 1e6, wide=True)
RATE_OR_ZERO = Range(0, 1e6, wide=True)
BELOW_ONE = Range(0, 1, open_high=True)

TEMPERATURE = Range(1e-6, 1e30)
"""What logits can be divided by in fp32; 0 stands for the likeliest token."""

RANGES: dict[str, Range] = {
    "model.num_layers": LAYERS,
    "model.num_decoder_layers": LAYERS,
    "model.hidden_size": COUNT,
    "model.ffn_hidden_size": COUNT,
    "model.num_attention_heads": COUNT,
    "model.num_query_groups": COUNT,
    "model.seq_length": COUNT,
    "model.vocab_size": COUNT,
    "model.decoder_seq_length": COUNT,
    "model.rotary_base": Range(1, 1e15, wide=True),
    "model.layernorm_epsilon": Range(1e-30, 1e6, wide=True),
    "model.init_method_std": Range(1e-30, 1e6, wide=True),
    "model.attention_dropout": BELOW_ONE,
    "model.hidden_dropout": BELOW_ONE,
    "model.kv_channels": COUNT,
    "model.rotary_scaling_factor": Range(1, 1e6, wide=True),
    # Half of the buckets, and in an encoder a quarter, are for single distances.
    "model.relative_attention_num_buckets": Range(4, LARGEST_COUNT, wide=True),
    "model.relative_attention_max_distance": COUNT,
    "model.max_positions": COUNT,
    "altup.coef_clip": POSITIVE,
    "sequence.stride": COUNT,
    "moe.num_experts": COUNT_OR_ZERO,
    "moe.layer_freq": COUNT,
    "moe.top_k": COUNT,
    "moe.ffn_hidden_size": COUNT,
    "moe.capacity_factor": Range(1e-30, 1e6, wide=True),
    "moe.aux_loss_coeff": RATE_OR_ZERO,
    "moe.z_loss_coeff": RATE_OR_ZERO,
    "moe.expert_bias_update_rate": RATE_OR_ZERO,
    "moe.alarm_expert_share": Range(0, 1),
    "moe.alarm_dropped_share": Range(0, 1),
    "moe.alarm_steps": COUNT,
    "moe.shared_expert_size": COUNT_OR_ZERO,
    "parallel.tensor": COUNT,
    "parallel.pipeline": COUNT,
    "parallel.virtual_pipeline": COUNT,
    "parallel.first_stage_layers": COUNT,
    "parallel.last_stage_layers": COUNT,
    "parallel.expert": COUNT,
    "parallel.expert_tensor": COUNT,
    "parallel.context": COUNT,
    "parallel.data": COUNT,
    "data.valid_fraction": Range(0, 1, open_low=True, open_high=True),
    "data.noise_density": Range(0, 1, open_low=True, open_high=True),
    "data.mean_noise_span": Range(1, 1e6, wide=True),
    "data.sentinels": COUNT,
    "data.mixture_cap": COUNT,
    "optim.learning_rate": RATE,
    "optim.min_learning_rate": RATE_OR_ZERO,
    "optim.warmup_steps": STEPS_OR_ZERO,
    "optim.decay_steps": STEPS,
    "optim.weight_decay": RATE_OR_ZERO,
    "optim.adam_beta1": BELOW_ONE,
    "optim.adam_beta2": BELOW_ONE,
    "optim.adam_eps": Range(1e-30, 1e6, wide=True),
    "optim.clip_grad": NOT_NEGATIVE,
    "optim.coefficient_lr_mult": RATE_OR_ZERO,
    "optim.mup_base_hidden_size": COUNT,
    "optim.mup_base_num_layers": COUNT,
    "train.steps": STEPS,
    "train.micro_batch_size": COUNT,
    "train.loss_chunk": COUNT,
    "train.global_batch_size": COUNT,
    # numpy's RandomState, which shuffles the samples, takes 32 bits.
    "train.seed": Range(0, 2**32 - 1),
    "train.eval_interval": STEPS_OR_ZERO,
    "train.eval_samples": COUNT,
    "train.eval_task_limit": COUNT,
    "train.stop_after": STEPS,
    "train.max_skipped": COUNT,
    "train.spike_sigma": POSITIVE,
    "train.spike_window": Range(2, LARGEST_COUNT, wide=True),
    "train.hang_timeout": Range(0, 1e7, wide=True),
    "checkpoint.save_interval": STEPS_OR_ZERO,
    "checkpoint.keep": COUNT,
    "checkpoint.keep_every": COUNT,
    "checkpoint.save_at": STEPS,
    "checkpoint.memory_interval": COUNT,
    "log.interval": COUNT,
    "log.routing_interval": COUNT_OR_ZERO,
    "log.profile_steps": COUNT_OR_ZERO,
    "log.straggler_interval": COUNT_OR_ZERO,
    "log.straggler_threshold": Range(1.05, 1e6),
    "log.slow_link_threshold": Range(1.05, 1e6),
    "log.sample_interval": COUNT,
    "log.sample_tokens": COUNT,
    "log.sample_temperature": NOT_NEGATIVE,
}
"""Dotted key -> range, of every numeric field; null is not checked."""
