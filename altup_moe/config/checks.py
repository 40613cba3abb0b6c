"""Which values fit together. Pure arithmetic on a `RunConfig` and a world size, before any process group exists."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from altup_moe.config.errors import ConfigError
from altup_moe.config.load import field_types
from altup_moe.config.schema import RunConfig

CORPORA = ("python-docs", "wikipedia-sample")
"""Corpora known by name; `altup_moe.data.corpora` loads them."""

Problems = Iterator[ConfigError]


def world_size_from_env() -> int:
    """Ranks of this run as the launcher set them (1 alone)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def data_parallel_size(config: RunConfig, world_size: int) -> int:
    """Ranks that hold the same part of the model and see different samples."""
    p = config.parallel
    return world_size // (p.tensor * p.pipeline * p.context)


def num_microbatches(config: RunConfig, world_size: int) -> int:
    """Forward passes of one rank in one optimizer step."""
    t = config.train
    return t.global_batch_size // (t.micro_batch_size * data_parallel_size(config, world_size))


def check_config(config: RunConfig, world_size: int) -> None:
    """Raise the first problem of a configuration.

    Raises:
        ConfigError: with the key, its value and what would fit.
    """
    for check in (_ranges, _model, _altup, _experts, _layout, _stages, _batch, _schedule, _data):
        for problem in check(config, world_size):
            raise problem


def _divides(key: str, value: int, whole_key: str, whole: int) -> Problems:
    """`value` must divide `whole`."""
    if whole % value:
        fits = ", ".join(str(n) for n in range(1, whole + 1) if whole % n == 0 and n <= 4096)
        yield ConfigError(key, value, f"must divide {whole_key}={whole}: {fits}")


def _multiple(key: str, value: int, of: int, why: str) -> Problems:
    """`value` must be a multiple of `of`."""
    if value % of:
        down, up = value // of * of, (value // of + 1) * of
        yield ConfigError(key, value, f"must be a multiple of {of} ({why}): {f'{down} or {up}' if down else up}")


def _lookup(config: RunConfig, key: str) -> object:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


_Rule = tuple[Callable[[float], bool], str]
_POSITIVE: _Rule = (lambda v: v > 0, "must be greater than 0")
_NOT_NEGATIVE: _Rule = (lambda v: v >= 0, "must be 0 or more")
_PROBABILITY: _Rule = (lambda v: 0 <= v < 1, "must be at least 0 and less than 1")
_SHARE: _Rule = (lambda v: 0 < v < 1, "must lie between 0 and 1")

RANGES: dict[str, _Rule] = {
    **dict.fromkeys(("model.attention_dropout", "model.hidden_dropout", "optim.adam_beta1", "optim.adam_beta2"), _PROBABILITY),
    **dict.fromkeys(
        (
            "moe.num_experts",
            "moe.aux_loss_coeff",
            "moe.z_loss_coeff",
            "moe.expert_bias_update_rate",
            "moe.shared_expert_size",
            "optim.min_learning_rate",
            "optim.warmup_steps",
            "optim.weight_decay",
            "optim.clip_grad",
            "optim.coefficient_lr_mult",
            "train.eval_interval",
            "train.seed",
            "checkpoint.save_interval",
        ),
        _NOT_NEGATIVE,
    ),
    "data.valid_fraction": _SHARE,
}
"""Ranges of numeric fields; every other number must be greater than 0."""


def _ranges(config: RunConfig, world_size: int) -> Problems:
    for key in field_types():
        value = _lookup(config, key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        fits, words = RANGES.get(key, _POSITIVE)
        if not fits(value):
            yield ConfigError(key, value, words)


def _model(config: RunConfig, world_size: int) -> Problems:
    m, p = config.model, config.parallel
    yield from _divides("model.num_attention_heads", m.num_attention_heads, "model.hidden_size", m.hidden_size)
    yield from _divides("model.num_query_groups", m.num_query_groups, "model.num_attention_heads", m.num_attention_heads)
    if m.kv_channels % 2:
        fits = f"hidden_size / num_attention_heads is {m.kv_channels}; RoPE needs it even"
        yield ConfigError("model.num_attention_heads", m.num_attention_heads, fits)
    for name in ("num_query_groups", "ffn_hidden_size", "vocab_size"):
        yield from _divides("parallel.tensor", p.tensor, f"model.{name}", getattr(m, name))


def _altup(config: RunConfig, world_size: int) -> Problems:
    a = config.altup
    if a.variant != "sum" or a.width == 1:
        return
    if a.recycled:
        yield ConfigError("altup.recycled", True, "must be false with altup.variant=sum: it sums a wide embedding")
    if config.model.share_embeddings_and_output_weights:
        fits = "must be false with altup.variant=sum: its embedding is wide and its output layer narrow"
        yield ConfigError("model.share_embeddings_and_output_weights", True, fits)


def _experts(config: RunConfig, world_size: int) -> Problems:
    moe, p = config.moe, config.parallel
    if moe.num_experts == 0:
        for key in ("expert", "expert_tensor"):
            if getattr(p, key) > 1:
                yield ConfigError(f"parallel.{key}", getattr(p, key), "must be 1 without experts (moe.num_experts=0)")
        return
    if moe.top_k > moe.num_experts:
        yield ConfigError("moe.top_k", moe.top_k, f"must be at most moe.num_experts={moe.num_experts}")
    if moe.layer_freq > config.model.num_layers:
        fits = f"must be at most model.num_layers={config.model.num_layers}, or no layer has experts"
        yield ConfigError("moe.layer_freq", moe.layer_freq, fits)
    if moe.expert_bias_update_rate > 0 and moe.score_function != "sigmoid":
        fits = "must be 0 unless moe.score_function=sigmoid"
        yield ConfigError("moe.expert_bias_update_rate", moe.expert_bias_update_rate, fits)
    yield from _divides("parallel.expert", p.expert, "moe.num_experts", moe.num_experts)
    yield from _divides("parallel.expert_tensor", p.expert_tensor, "moe.ffn_hidden_size", moe.ffn_hidden_size)
    if moe.shared_expert_size:
        yield from _divides("parallel.tensor", p.tensor, "moe.shared_expert_size", moe.shared_expert_size)


def _layout(config: RunConfig, world_size: int) -> Problems:
    p, length = config.parallel, config.model.seq_length
    for what, ranks in (
        ("tensor * pipeline * context", p.tensor * p.pipeline * p.context * (p.data or 1)),
        ("expert_tensor * expert * pipeline", p.expert_tensor * p.expert * p.pipeline),
    ):
        if world_size % ranks:
            start = f"start with torchrun --nproc-per-node {ranks}"
            yield ConfigError("world size", world_size, f"must be a multiple of {ranks} (parallel: {what}); {start}")
    data = data_parallel_size(config, world_size)
    if p.data is not None and p.data != data:
        yield ConfigError("parallel.data", p.data, f"{world_size} ranks leave {data} (or null, to take what remains)")
    if p.context > 1:
        yield from _multiple("model.seq_length", length, 2 * p.context * p.tensor, "2 * context * tensor")
    else:
        yield from _multiple("model.seq_length", length, p.tensor, "sequence parallelism over tensor ranks")


def _stages(config: RunConfig, world_size: int) -> Problems:
    p, layers = config.parallel, config.model.num_layers
    if p.virtual_pipeline > 1 and p.pipeline == 1:
        yield ConfigError("parallel.virtual_pipeline", p.virtual_pipeline, "must be 1 unless parallel.pipeline > 1")
    ends = {f"parallel.{k}": getattr(p, k) for k in ("first_stage_layers", "last_stage_layers") if getattr(p, k)}
    if ends and p.pipeline == 1:
        key, value = next(iter(ends.items()))
        yield ConfigError(key, value, "must be null unless parallel.pipeline > 1")
    if not ends:
        yield from _multiple("model.num_layers", layers, p.pipeline * p.virtual_pipeline, "pipeline * virtual_pipeline")
        return
    key, value = next(iter(ends.items()))
    rest, stages = layers - sum(ends.values()), p.pipeline - len(ends)
    if (stages and (rest <= 0 or rest % stages)) or (not stages and rest):
        fits = f"leaves {rest} of {layers} layers for {stages} other stage(s), which must share them evenly"
        yield ConfigError(key, value, fits)
    for key, value in (*ends.items(), ("model.num_layers", rest // stages if stages else 0)):
        yield from _multiple(key, value, p.virtual_pipeline, "virtual_pipeline")


def _batch(config: RunConfig, world_size: int) -> Problems:
    t, p = config.train, config.parallel
    data = data_parallel_size(config, world_size)
    why = f"micro_batch_size {t.micro_batch_size} * {data} data-parallel rank(s)"
    yield from _multiple("train.global_batch_size", t.global_batch_size, t.micro_batch_size * data, why)
    if p.virtual_pipeline > 1:
        count = num_microbatches(config, world_size)
        if count % p.pipeline:
            up = (count // p.pipeline + 1) * p.pipeline * t.micro_batch_size * data
            fits = f"gives {count} micro-batches; interleaving needs a multiple of parallel.pipeline={p.pipeline}: {up}"
            yield ConfigError("train.global_batch_size", t.global_batch_size, fits)


def _schedule(config: RunConfig, world_size: int) -> Problems:
    o, t = config.optim, config.train
    if o.min_learning_rate > o.learning_rate:
        fits = f"must be at most optim.learning_rate={o.learning_rate}"
        yield ConfigError("optim.min_learning_rate", o.min_learning_rate, fits)
    end = o.decay_steps if o.schedule == "cosine" and o.decay_steps else t.steps
    if o.warmup_steps >= end and end > 1:
        yield ConfigError("optim.warmup_steps", o.warmup_steps, f"must be less than the {end} steps of the schedule")
    if o.schedule == "wsd" and o.decay_steps and o.decay_steps + o.warmup_steps > t.steps:
        fits = f"must be at most train.steps - optim.warmup_steps = {t.steps - o.warmup_steps}"
        yield ConfigError("optim.decay_steps", o.decay_steps, fits)
    if t.stop_after is not None and t.stop_after > t.steps:
        yield ConfigError("train.stop_after", t.stop_after, f"must be at most train.steps={t.steps}")


def _data(config: RunConfig, world_size: int) -> Problems:
    d = config.data
    if d.corpus not in CORPORA and not Path(d.corpus + ".idx").is_file():
        fits = f"must be one of {', '.join(CORPORA)}, or the prefix of a PREFIX.idx that tools/prepare_data.py wrote"
        yield ConfigError("data.corpus", d.corpus, fits)
    if d.tokenizer is not None and not Path(d.tokenizer).is_dir():
        yield ConfigError("data.tokenizer", d.tokenizer, "must be a directory that holds a tokenizer")
