"""What makes two runs the same: the configuration as it is compared, or hashed, with one of an older version."""

from __future__ import annotations

from typing import Any

from altup_moe.config.schema import RunConfig

ADDED_KEYS: frozenset[str] = frozenset(
    {
        *("data.add_special_tokens", "data.shuffle", "model.max_positions", "moe.load_balancing_type"),
        *("train.eval_tasks", "train.eval_task_limit", "log.routing_interval", "log.sample_interval"),
        *("moe.alarm_expert_share", "moe.alarm_dropped_share", "moe.alarm_steps"),
        *("train.max_skipped", "train.spike_sigma", "train.spike_window", "train.on_spike"),
        *("checkpoint.memory_interval", "checkpoint.save_at", "checkpoint.branch_from"),
        *("optim.parametrization", "optim.mup_base_hidden_size", "optim.mup_base_num_layers"),
        *("altup.level", "altup.correct"),
        *("train.hang_timeout", "train.loss_chunk", "train.compile"),
        *("log.straggler_interval", "log.straggler_threshold", "log.slow_link_threshold"),
        *("log.sample_prompts", "log.sample_prompts_file", "log.sample_tokens", "log.sample_temperature"),
    }
)
"""Keys that came after results were first kept under a configuration's hash. The default of each is what code without
the key did, so that a finished row or stage of older code stays the same one. A new key is entered here, and in
`resume_keys.KEY_CLASSES`."""


def identity(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The configuration by section and key, without `ADDED_KEYS` that have their default."""
    defaults = RunConfig().to_dict()
    return {
        section: {
            key: value
            for key, value in values.items()
            if f"{section}.{key}" not in ADDED_KEYS or value != defaults[section][key]
        }
        for section, values in config.to_dict().items()
    }
