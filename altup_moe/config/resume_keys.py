"""What a run that goes on from its checkpoint may change: the class of every key of a configuration."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from altup_moe.config.schema import RunConfig

KeyClass = Literal["model", "run", "recorded", "free"]
"""What another value of a key means to a checkpoint.

model: it is another model. Refused, also for a new run that takes over the weights (checkpoint.initial_load_path).
run: it is another run (its samples, its precision). Refused on resume; a new run may choose.
recorded: the run goes on differently. Said in one line at the start, and recorded in metrics.jsonl and the manifest.
free: it changes nothing that is computed, beyond rounding and dropout's masks.
"""
Changes = dict[str, tuple[object, object]]
"""Dotted key -> (value before, value now)."""


def _each(section: str, kind: KeyClass, names: str) -> dict[str, KeyClass]:
    return {f"{section}.{name}": kind for name in names.split()}


KEY_CLASSES: dict[str, KeyClass] = {
    **_each("model", "model", "num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups vocab_size"),
    **_each("model", "model", "share_embeddings_and_output_weights rotary_base layernorm_epsilon kv_channels"),
    **_each("model", "model", "qk_layernorm rotary_scaling_factor arch num_decoder_layers"),
    **_each("model", "model", "relative_attention_num_buckets relative_attention_max_distance"),
    **_each("model", "run", "seq_length decoder_seq_length init_method_std attention_dropout hidden_dropout"),
    **_each("model", "free", "max_positions"),
    **_each("altup", "model", "width variant select level correct recycled cross_attention coef_clip"),
    **_each("altup", "free", "kernel"),
    **_each("sequence", "model", "stride layers method decoder_layers"),
    **_each("moe", "model", "num_experts layer_freq top_k ffn_hidden_size score_function shared_expert_size partial"),
    **_each(
        "moe",
        "run",
        "capacity_factor aux_loss_coeff load_balancing_type z_loss_coeff expert_bias_update_rate dispatcher",
    ),
    **_each("moe", "free", "backend alarm_expert_share alarm_dropped_share alarm_steps"),
    **_each("parallel", "free", "tensor pipeline virtual_pipeline first_stage_layers last_stage_layers expert"),
    **_each("parallel", "free", "expert_tensor context data distributed_optimizer overlap_grad_reduce zero_stage"),
    **_each("overlap", "free", "mixing exchange microbatch_halves"),
    **_each("data", "run", "corpus tokenizer valid_fraction objective noise_density mean_noise_span sentinels"),
    **_each("data", "run", "add_special_tokens mixture mixture_cap task_files"),
    # The order is the checkpoint's (train.sample_order).
    **_each("data", "free", "cache shuffle"),
    # Another optimizer has other state; see `class_of` for a checkpoint that has none.
    **_each("optim", "run", "optimizer parametrization mup_base_hidden_size mup_base_num_layers"),
    **_each("optim", "recorded", "learning_rate min_learning_rate warmup_steps schedule decay_steps weight_decay"),
    **_each("optim", "recorded", "adam_beta1 adam_beta2 adam_eps clip_grad coefficient_lr_mult"),
    **_each("train", "run", "global_batch_size seed precision"),
    # The number of steps stretches the schedule; capacity and balance losses are by micro-batch.
    **_each("train", "recorded", "steps micro_batch_size eval_samples eval_task_limit"),
    **_each("train", "recorded", "spike_sigma spike_window on_spike"),
    **_each("train", "free", "engine transformer_engine recompute eval_interval eval_tasks stop_after max_skipped"),
    **_each("train", "free", "hang_timeout loss_chunk compile"),
    **_each("checkpoint", "recorded", "initial_load_path"),
    **_each(
        "checkpoint",
        "free",
        "save_interval keep keep_every save_at branch_from memory_interval asynchronous on_failure resume fallback",
    ),
    **_each(
        "log", "free", "run_dir interval routing_interval profile_steps tensorboard wandb_project mlflow_experiment"
    ),
    **_each("log", "free", "straggler_interval straggler_threshold slow_link_threshold"),
    **_each("log", "free", "sample_interval sample_prompts sample_prompts_file sample_tokens sample_temperature"),
}
"""Dotted key -> class, of every key. A new key is entered here."""


def differing(before: RunConfig, now: RunConfig, classes: Iterable[KeyClass]) -> Changes:
    """Keys of these classes whose values differ, in the configuration's order."""
    old, new, wanted = before.to_dict(), now.to_dict(), set(classes)
    return {
        f"{section}.{key}": (old[section][key], value)
        for section, values in new.items()
        for key, value in values.items()
        if old[section][key] != value and KEY_CLASSES[f"{section}.{key}"] in wanted
    }


def spelled_changes(changes: Changes) -> str:
    """Changes in one line."""
    return ", ".join(f"{key} {before} -> {now}" for key, (before, now) in changes.items())


def changes_record(step: int, changes: Changes) -> dict[str, object]:
    """Changes after a step as a checkpoint's manifest holds them."""
    return {"step": step, "keys": {key: list(values) for key, values in changes.items()}}
