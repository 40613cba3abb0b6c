"""Tables of the options that an architecture does not support. `checks.py` has the checks common to all."""

from __future__ import annotations

from altup_moe.altup.lazy import load_object
from altup_moe.altup.variants import VARIANTS, stream_row
from altup_moe.config.architectures import ARCHITECTURES
from altup_moe.config.errors import ConfigError
from altup_moe.config.schema import RunConfig

Refused = list[tuple[bool, str, object, str]]


def check_arch(config: RunConfig) -> None:
    """Raise ConfigError for the first value that does not fit model.arch."""
    m, a = config.model, config.altup
    if m.arch not in ARCHITECTURES:
        raise ConfigError("model.arch", m.arch, f"{', '.join(ARCHITECTURES)} would fit")
    if a.variant not in VARIANTS:
        raise ConfigError("altup.variant", a.variant, f"{', '.join(VARIANTS)} would fit")
    for wrong, key, value, fits in load_object(m.architecture.refused)(config):
        if wrong:
            raise ConfigError(key, value, fits)
    if a.width > 1 and m.arch not in VARIANTS[a.variant].architectures:
        carried = ", ".join(row.name for row in VARIANTS.values() if m.arch in row.architectures)
        raise ConfigError("altup.variant", a.variant, f"model.arch {m.arch} does not carry it; {carried} would fit")
    if a.correct == "delayed":
        _check_delayed(config)
    if a.width > 1 and a.level not in VARIANTS[a.variant].levels:
        fits = f"altup.variant {a.variant} stands around branches, not whole layers; branch would fit"
        raise ConfigError("altup.level", a.level, fits)
    if a.level == "branch" and (a.width > 1 or a.correct == "delayed"):
        _check_branches(config)


def _check_delayed(config: RunConfig) -> None:
    """Raise ConfigError for what cannot read a stream without the last output."""
    a, row = config.altup, stream_row(config.altup.variant, config.altup.width)
    if not row.blocks:
        fits = f"altup.variant {a.variant} has one block, and every layer reads all of it; next would fit"
        raise ConfigError("altup.correct", a.correct, fits)
    if config.model.arch != "gpt":
        fits = f"the streams of model.arch {config.model.arch} do not carry it; next would fit"
        raise ConfigError("altup.correct", a.correct, fits)
    if not row.delays:
        carried = ", ".join(other.name for other in VARIANTS.values() if other.delays and a.level in other.levels)
        fits = f"what a step of altup.variant {a.variant} reads follows from the last output; next would fit, or "
        raise ConfigError("altup.correct", a.correct, fits + f"altup.variant {carried}")
    if row.masked is not None and a.select != "alternating":
        fits = "with altup.correct delayed a step writes to all blocks but the one that the next step reads, and with "
        raise ConfigError("altup.select", a.select, fits + "same that is the only one; alternating would fit")


def _check_branches(config: RunConfig) -> None:
    """Raise ConfigError for what stands around whole layers only."""
    a, layer = config.altup, "stands around whole layers only; layer would fit"
    if not VARIANTS[a.variant].blocks:
        raise ConfigError("altup.level", a.level, f"altup.variant {a.variant} {layer}")
    if config.model.arch != "gpt":
        raise ConfigError("altup.level", a.level, f"the stream of model.arch {config.model.arch} {layer}")
    if config.sequence.stride > 1 and "layer" not in VARIANTS[a.variant].levels:
        fits = f"altup.variant {a.variant} stands around branches, strided layers are whole ones; 1 would fit"
        raise ConfigError("sequence.stride", config.sequence.stride, fits)
    if config.sequence.stride > 1:
        raise ConfigError("altup.level", a.level, f"sequence.stride {config.sequence.stride} {layer}")


def refused_by_gpt(config: RunConfig) -> Refused:
    """What a decoder-only model does not have."""
    m, cross = config.model, config.altup.cross_attention
    only = "is of model.arch t5's decoder; {} would fit"
    layers, length, strided = m.num_decoder_layers, m.decoder_seq_length, config.sequence.decoder_layers
    return [
        (layers is not None, "model.num_decoder_layers", layers, only.format("null")),
        (length is not None, "model.decoder_seq_length", length, only.format("null")),
        (cross != "narrow", "altup.cross_attention", cross, only.format("narrow")),
        (strided is not None, "sequence.decoder_layers", strided, only.format("null")),
    ]


def refused_by_t5(config: RunConfig) -> Refused:
    """What an encoder-decoder does not have."""
    m, p = config.model, config.parallel
    heads, buckets, farthest = (
        m.num_attention_heads,
        m.relative_attention_num_buckets,
        m.relative_attention_max_distance,
    )
    return [
        (
            p.pipeline > 1,
            "parallel.pipeline",
            p.pipeline,
            "stages hand on one stream, and with model.arch t5 every decoder layer reads the encoder's output as well; "
            "1 would fit",
        ),
        (
            p.context > 1,
            "parallel.context",
            p.context,
            "a context rank has parts of a sequence, and model.arch t5's biases and paddings are those of whole ones; "
            "1 would fit",
        ),
        (
            m.num_query_groups != heads,
            "model.num_query_groups",
            m.num_query_groups,
            f"model.arch t5 has a key and a value for each query head; {heads} would fit",
        ),
        (m.qk_layernorm, "model.qk_layernorm", True, "model.arch t5 has no such norms; false would fit"),
        (
            m.max_positions is not None,
            "model.max_positions",
            m.max_positions,
            "model.arch t5's relative positions have no limit; null would fit",
        ),
        (
            m.rotary_scaling_factor is not None,
            "model.rotary_scaling_factor",
            m.rotary_scaling_factor,
            "model.arch t5 has no RoPE; null would fit",
        ),
        (
            buckets % 2 == 1,
            "model.relative_attention_num_buckets",
            buckets,
            f"half of them are an encoder's for later keys; {buckets - 1} or {buckets + 1} would fit",
        ),
        (
            farthest <= buckets // 2,
            "model.relative_attention_max_distance",
            farthest,
            f"half of model.relative_attention_num_buckets ({buckets}) are for distances one by one; more than "
            f"{buckets // 2} would fit",
        ),
    ]
