"""Check that a growth is possible before anything is written. Pure functions of a `Growth`."""

from __future__ import annotations

from altup_moe.altup.variants import VARIANTS, find_variant
from altup_moe.checkpoint.grow.rules import Growth, has_experts
from altup_moe.config import ConfigError, UserError
from altup_moe.config.checks import check_config, smallest_world
from altup_moe.config.ranges import NOT_NEGATIVE, Range
from altup_moe.parallel.parameter_names import global_shapes

GROWING_KEYS = {
    "model": {"num_layers"},
    "data": {"cache"},
}
"""Section -> the only keys that may differ between source and target."""
FIXED_KEYS = {"train": {"precision", "seed", "global_batch_size"}}
"""Section -> keys that may not differ; all others of the section may."""


def check_growth(growth: Growth) -> None:
    """Raise a ConfigError for the first value that cannot be reached by growing, or that `check_config` refuses.

    `check_config` runs with the smallest world size of the target's layout.
    """
    for check in (_noise, _arch, _strided, _kept, _widths, _stream, _layers, _more_experts):
        check(growth)
    check_config(growth.target, smallest_world(growth.target.parallel))
    for check in (_upcycling, _shared, _something):
        check(growth)


def _noise(growth: Growth) -> None:
    NOT_NEGATIVE.check("expert_noise", growth.expert_noise)
    NOT_NEGATIVE.check("coefficient_noise", growth.coefficient_noise)
    Range(0, 2**63 - 1).check("seed", growth.seed)


def _strided(growth: Growth) -> None:
    for config in (growth.source, growth.target):
        if config.sequence.stride > 1:
            fits = "what strided layers compute on is not preserved when they grow; 1 would fit"
            raise ConfigError("sequence.stride", config.sequence.stride, fits)


def _arch(growth: Growth) -> None:
    row = growth.source.model.architecture
    if not row.grown:
        raise ConfigError("model.arch", row.name, "growing knows one stack of layers; a source of arch gpt would fit")


def _kept(growth: Growth) -> None:
    old, new = growth.source.to_dict(), growth.target.to_dict()
    for section, values in new.items():
        for key, value in values.items():
            fixed = key not in GROWING_KEYS[section] if section in GROWING_KEYS else key in FIXED_KEYS.get(section, ())
            if fixed and value != old[section][key]:
                raise ConfigError(f"{section}.{key}", value, f"growing keeps it; {old[section][key]} would fit")


def _widths(growth: Growth) -> None:
    old, new = growth.source.altup.width, growth.target.altup.width
    if new % old:
        fitting = [n for n in (1, 2, 4, 8) if n % old == 0]
        fits = f"the source's {old} blocks are copied; {', '.join(map(str, fitting))} would fit"
        raise ConfigError("altup.width", new, fits)


def _stream(growth: Growth) -> None:
    old, new = growth.source.altup, growth.target.altup
    for key in ("variant", "select", "level", "correct", "recycled", "coef_clip") if old.width > 1 else ():
        before, after = getattr(old, key), getattr(new, key)
        if before != after:
            fits = f"another function of the source's {old.width} blocks; {before} would fit"
            raise ConfigError(f"altup.{key}", after, fits)
    if old.width == 1 and old.correct != new.correct:
        reads = "all of the last output" if old.correct == "next" else "nothing of the last output"
        fits = f"each layer of a plain source reads {reads}, which is another function; {old.correct} would fit"
        raise ConfigError("altup.correct", new.correct, fits)
    if new.correct == "delayed" and old.width == 1 and old.level != new.level:
        fits = f"another step would read without the output of the last one; {old.level} would fit"
        raise ConfigError("altup.level", new.level, fits)
    if new.correct == "delayed" and old.width == 1 < new.width:
        fits = "each layer of the source reads nothing of the last output, of several blocks it reads some; 1 would fit"
        raise ConfigError("altup.width", new.width, fits)
    row = find_variant(new.variant)
    if row.blocks and row.widening is None and new.width != old.width:
        widened = ", ".join(other.name for other in VARIANTS.values() if other.widening and other.copies == "equal")
        kept = f"altup.width {old.width}" if old.width > 1 else widened
        why = "no rule copies the blocks of its stream"
        if row.projections:
            why = "learned projections expand and contract its stream, of which no copies are made"
        raise ConfigError("altup.variant", new.variant, f"{why}; {kept} would fit")
    if row.copies != "summed" or new.width == old.width:
        return
    if old.width == 1 and new.level == "layer":
        fits = "adds y to a block, where the plain Transformer replaces x by y, its residual included: no coefficients "
        raise ConfigError("altup.variant", new.variant, fits + "make them equal; altup or gemma would fit")
    if not new.recycled:
        fits = f"copies of a {row.name} block come apart, and the final norm over them differs; {old.width} would fit"
        raise ConfigError("altup.width", new.width, fits)


def _layers(growth: Growth) -> None:
    old, new = growth.source.model.num_layers, growth.target.model.num_layers
    if new < old:
        raise ConfigError("model.num_layers", new, f"layers are only added; {old} or more would fit")
    variant = growth.target.altup.variant
    if new > old and growth.target.altup.width > 1 and not find_variant(variant).deepens:
        fits = f"a layer of altup.variant {variant} changes the stream, whatever it computes; {old} would fit"
        raise ConfigError("model.num_layers", new, fits)
    for layer in range(old):
        if has_experts(growth.source, layer) and not has_experts(growth.target, layer):
            before = growth.source.moe
            if not growth.target.moe.num_experts:
                raise ConfigError("moe.num_experts", 0, f"experts are only added; {before.num_experts} would fit")
            fits = f"layer {layer} has experts and would become dense; a divisor of {before.layer_freq} would fit"
            raise ConfigError("moe.layer_freq", growth.target.moe.layer_freq, fits)


def _more_experts(growth: Growth) -> None:
    old, new, m = growth.source.moe, growth.target.moe, growth.expert_times
    if not old.num_experts:
        if growth.split_experts:
            raise ConfigError("split_experts", True, "the source has no experts; upcycle it first, then split those")
        return
    if new.num_experts % old.num_experts:
        below = old.num_experts * max(m, 1)
        fits = f"the source's {old.num_experts} experts are multiplied; {below} or {below + old.num_experts} would fit"
        raise ConfigError("moe.num_experts", new.num_experts, fits)
    if growth.split_experts and m == 1:
        raise ConfigError("split_experts", True, f"needs a multiple of moe.num_experts={old.num_experts}")
    if m > 1 and old.top_k == 1:
        fits = "the source has moe.top_k=1, whose probability is not normalised: copies would add up to another; "
        raise ConfigError("moe.num_experts", new.num_experts, f"{fits}{old.num_experts} would fit")
    if new.top_k != m * old.top_k:
        why = f"{m} times the experts share a token's probability" if m > 1 else "growing keeps it"
        raise ConfigError("moe.top_k", new.top_k, f"{why}; {m * old.top_k} would fit")
    inner = old.ffn_hidden_size // m if growth.split_experts else old.ffn_hidden_size
    if growth.split_experts and old.ffn_hidden_size % m:
        fits = f"must divide the inner width of the source's experts, {old.ffn_hidden_size}, to split it"
        raise ConfigError("moe.num_experts", new.num_experts, f"{m} times the source's {fits}")
    if new.ffn_hidden_size != inner:
        what = f"experts are cut into {m} parts" if growth.split_experts else "experts are copied"
        raise ConfigError("moe.ffn_hidden_size", new.ffn_hidden_size, f"{what}; {inner} would fit")
    if new.score_function != old.score_function:
        fits = f"another function of the source's routers; {old.score_function} would fit"
        raise ConfigError("moe.score_function", new.score_function, fits)
    if old.expert_bias_update_rate and not new.expert_bias_update_rate:
        fits = f"the source's routing depends on its biases; {old.expert_bias_update_rate} would fit"
        raise ConfigError("moe.expert_bias_update_rate", 0.0, fits)


def _upcycling(growth: Growth) -> None:
    model, moe = growth.target.model, growth.target.moe
    layers = range(growth.source.model.num_layers)
    upcycled = [n for n in layers if has_experts(growth.target, n) and not has_experts(growth.source, n)]
    copied = [] if moe.partial else upcycled
    if copied and moe.ffn_hidden_size != model.ffn_hidden_size:
        fits = f"experts of layer {copied[0]} are copies of its dense feed-forward; {model.ffn_hidden_size} would fit"
        raise ConfigError("moe.ffn_hidden_size", moe.ffn_hidden_size, fits)
    if copied and moe.top_k == 1:
        fits = "a single expert's probability is not normalised, so the output would shrink; 2 or more would fit"
        raise ConfigError("moe.top_k", 1, fits)
    copies = bool(copied) or (growth.expert_times > 1 and not growth.split_experts)
    if growth.expert_noise and not copies:
        raise ConfigError("expert_noise", growth.expert_noise, "no expert is copied; 0 would fit")
    wider = growth.width_times > 1 and find_variant(growth.target.altup.variant).blocks
    if growth.coefficient_noise and not wider:
        raise ConfigError("coefficient_noise", growth.coefficient_noise, "the stream becomes no wider; 0 would fit")


def _shared(growth: Growth) -> None:
    moe, old, new = growth.source.moe, growth.source.shared_expert_size, growth.target.shared_expert_size
    if moe.num_experts and old and new != old:
        fits = "moe.partial true would fit" if moe.partial else f"{old} would fit"
        raise ConfigError("moe.shared_expert_size", new, f"the shared expert is kept; {fits}")


def _something(growth: Growth) -> None:
    if global_shapes(growth.source) == global_shapes(growth.target):
        keys = "altup.width, moe.num_experts, moe.layer_freq, moe.shared_expert_size or model.num_layers"
        raise UserError(f"nothing grows: give a larger {keys}")
