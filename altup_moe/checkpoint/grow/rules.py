"""One rule for each tensor of a grown model: how its value and its gradient follow from the source's tensor.

All rules preserve the function that the model computes. If the gradient is a known multiple of the source's, Adam's
state is kept with that multiple (squared for the second moment); otherwise it starts from zero. A tensor that is kept
unchanged keeps its gradient, since the loss is the same function of it (router losses excepted).

| grown | tensors | value | gradient |
|---|---|---|---|
| stream, K -> m K (`grow_stream`) | altup.* | I_m (x) P, (g, ..., g); last layer by shares | unknown |
| - delayed outputs | altup.correct | 0 for copies of the block that is not written | unknown |
| - recycled `round_robin` | embedding | / m | * m |
| | final norm, if tables are tied | * m | / m |
| - wide tables | embedding | m copies side by side | unknown |
| | final norm: untied; tied | m copies; m copies / m | / m; kept |
| | lm_head | m copies / m | kept |
| - `sum` | embedding | zeros beside it | that of the old columns |
| dense -> E experts (arXiv 2212.05055) | experts | each the dense MLP | unknown |
| | router | drawn | |
| dense -> partial experts | shared expert | the dense MLP | kept |
| | gate, up, router; down | drawn; 0 | |
| E -> m E experts, top_k -> m top_k | experts, router rows | number e is old e mod E | / m |
| E -> m E parts (arXiv 2410.07524) | gate, up | the m-th parts of old e mod E | kept |
| | down | the same, * m | / m |
| | router rows | row e mod E | unknown |
| new shared expert | gate, up; down | drawn; 0 | |
| layers, after the last | o_proj, down_proj; P, g; others | 0; I, 1; drawn | |

The chosen probabilities are normalised, so E equal experts compute what one computes, and each of m copies of an
expert with probability p gets p / m.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from altup_moe.altup.lazy import load_object
from altup_moe.altup.shape import branches, output_width, step_of, stream_width
from altup_moe.altup.static import masked
from altup_moe.altup.variants import find_variant, next_block, selected_block
from altup_moe.altup.widening import identical_blocks, neutral_value
from altup_moe.checkpoint.slices import full_slice
from altup_moe.config import RunConfig
from altup_moe.parallel.seeds import initial, normal

UNKNOWN_SHARE = "copies whose shares of the old gradient are not known"
COPIES_OF_DENSE = "experts copied from a dense feed-forward, each of which sees tokens of its own"
NEW_WEIGHTS = "new weights"


@dataclass(frozen=True)
class Growth:
    """A growth from one run configuration to another.

    ``seed``: of new weights and noise. ``split_experts``: additional experts are parts of the old ones, not copies.
    ``expert_noise``: on copied experts, relative to a tensor's standard deviation. ``coefficient_noise``: standard
    deviation of the noise on the coefficients of a wider stream.
    """

    source: RunConfig
    target: RunConfig
    seed: int
    split_experts: bool = False
    expert_noise: float = 0.0
    coefficient_noise: float = 0.0

    @property
    def width_times(self) -> int:
        """Factor m by which the stream becomes wider."""
        return self.target.altup.width // self.source.altup.width

    @property
    def expert_times(self) -> int:
        """Factor m by which the number of experts grows; 1 if the source has none."""
        before = self.source.moe.num_experts
        return self.target.moe.num_experts // before if before else 1

    @property
    def seeded_target(self) -> RunConfig:
        """The grown configuration with the seed that new weights are drawn from."""
        return replace(self.target, train=replace(self.target.train, seed=self.seed))

    @property
    def exact(self) -> bool:
        """Whether the grown model computes exactly what the source computes (no noise)."""
        return self.expert_noise == 0 and self.coefficient_noise == 0


def equal_copies_notes(growth: Growth) -> list[str]:
    """One readable line for each set of copies that training leaves equal, since their gradients are always equal."""
    source, target, lines = growth.source, growth.target, []
    row = find_variant(target.altup.variant)
    copied = row.widening is not None and row.copies == "equal"
    if growth.width_times > 1 and copied and not growth.coefficient_noise:
        steps = target.model.num_layers * len(branches(target.altup.level))
        blocks = identical_blocks(source.altup.width, growth.width_times, steps, target.altup.select)
        if blocks:
            which = ", ".join(map(str, blocks))
            lines.append(
                f"no layer computes on blocks {which}: the copies among them stay equal without --coefficient-noise"
            )
    if growth.expert_times > 1 and not (growth.split_experts or growth.expert_noise):
        lines.append("copies of an expert are chosen together and stay equal without expert_noise")
    return lines


@dataclass(frozen=True)
class Rule:
    """One tensor of the grown model.

    ``source``: global name of the source's tensor; None for new weights. ``value(old)``: the tensor in fp32, from the
    source's tensor in fp32 (an empty one for None). ``gradient``: the linear function from the old gradient to the new
    one, up to the factor ``gradient_times``; None if it is not known, and then ``why`` gives the reason.
    """

    source: str | None
    value: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor], Tensor] | None = None
    gradient_times: float = 1.0
    why: str = ""

    def moment(self, old: Tensor, power: int) -> Tensor:
        """Adam's first (power 1) or second (power 2) moment, from that of the source's tensor."""
        assert self.gradient is not None
        return self.gradient(old) * self.gradient_times**power


def has_experts(config: RunConfig, layer: int) -> bool:
    """Whether layer `layer` (from 0) is MoE."""
    return config.moe.num_experts > 0 and (layer + 1) % config.moe.layer_freq == 0


def rule_of(name: str, shape: tuple[int, ...], growth: Growth) -> Rule:
    """The rule for a global tensor of the grown model, of shape `shape`. The growth must be a checked one."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
    if not match:
        return _table(name, growth)
    layer, rest = int(match[1]), match[2]
    if rest.startswith("altup."):
        return _coefficient(name, layer, rest.removeprefix("altup."), shape, growth)
    if layer >= growth.source.model.num_layers:
        return _drawn(name, shape, growth)
    if rest.startswith("mlp.") and has_experts(growth.target, layer):
        before = _more_experts if has_experts(growth.source, layer) else _upcycled
        return before(name, f"model.layers.{layer}.mlp", rest.removeprefix("mlp."), shape, growth)
    return _kept(name)


def _kept(name: str) -> Rule:
    return Rule(name, _same, _same)


def _same(old: Tensor) -> Tensor:
    return old


def _drawn(name: str, shape: tuple[int, ...], growth: Growth) -> Rule:
    """Initial weights of a new model, but zero for those that write into the residual stream."""
    if name.endswith((".o_proj.weight", ".down_proj.weight")):
        return Rule(None, lambda _: torch.zeros(shape), why=NEW_WEIGHTS)
    return Rule(None, lambda _: initial(name, shape, full_slice(shape), growth.seeded_target), why=NEW_WEIGHTS)


# ------------------------------------------------------------------------------------------------------------ stream


def _table(name: str, growth: Growth) -> Rule:
    m, d, a = growth.width_times, growth.target.model.hidden_size, growth.target.altup
    tied = growth.target.model.share_embeddings_and_output_weights

    def side_by_side(old: Tensor) -> Tensor:
        # Block i of the copies is block i mod K.
        return old.repeat(*[1] * (old.ndim - 1), m)

    row = find_variant(a.variant)
    if m == 1 or not (row.blocks or name == "model.embed_tokens.weight"):
        return _kept(name)
    if not row.blocks:
        return Rule(name, lambda old: torch.nn.functional.pad(old, (0, (m - 1) * old.shape[1])), side_by_side)
    if output_width(d, a.width, a.variant, a.recycled) == d:
        if row.copies == "summed" and name == "model.embed_tokens.weight":
            return Rule(name, lambda old: old / m, _same, m)
        if row.copies == "summed" and name == "model.norm.weight" and tied:
            return Rule(name, lambda old: old * m, _same, 1 / m)
        return _kept(name)
    if name == "model.embed_tokens.weight":
        return Rule(name, side_by_side, why=UNKNOWN_SHARE)
    if name == "model.norm.weight" and not tied:
        return Rule(name, side_by_side, side_by_side, 1 / m)
    return Rule(name, lambda old: side_by_side(old) / m, side_by_side)


def _coefficient(name: str, layer: int, rest: str, shape: tuple[int, ...], growth: Growth) -> Rule:
    source, target, m = growth.source, growth.target, growth.width_times
    row = find_variant(target.altup.variant)
    if row.per_token:
        # Only layers are added, and a new one starts as the layer of a new model.
        return _kept(name) if layer < source.model.num_layers else _drawn(name, shape, growth)
    level, (*branch, leaf) = target.altup.level, rest.split(".")
    step = step_of(layer, branch[0] if branch else "", level)
    coefficient = row.coefficients[leaf]
    width = stream_width(source.altup.width, source.altup.variant)
    block = selected_block(step, target.altup.width, target.altup.select)
    known = width > 1 and layer < source.model.num_layers
    if known and (m == 1 or not coefficient.has_blocks):
        return _kept(name)
    unwritten = next_block(step, width, target.altup.select, target.altup.correct) if row.masked == leaf else None
    summed = target.altup.recycled and step == target.model.num_layers * len(branches(level)) - 1

    def grown(old: Tensor) -> Tensor:
        value = old if known else neutral_value(coefficient, width, target.model.hidden_size, block % width, level)
        if row.widening is not None:
            if unwritten is not None:
                # The grown step's mask leaves out one of the block's copies; all of them stay equal.
                value = masked(value, unwritten)
            value = load_object(row.widening)(leaf, value, m, block, summed)
        return value + _noise(name, shape, growth.coefficient_noise if m > 1 else 0.0, growth.seed)

    return Rule(name if known else None, grown, why=UNKNOWN_SHARE if known else NEW_WEIGHTS)


def _noise(name: str, shape: tuple[int, ...], std: float, seed: int) -> Tensor:
    return normal(f"noise/{name}", shape, full_slice(shape), std, seed) if std else torch.zeros(())


# ----------------------------------------------------------------------------------------------------------- experts


def _expert(rest: str) -> tuple[int, str] | None:
    match = re.fullmatch(r"experts\.(\d+)\.(.+)", rest)
    return (int(match[1]), match[2]) if match else None


def _upcycled(name: str, mlp: str, rest: str, shape: tuple[int, ...], growth: Growth) -> Rule:
    """Every expert is a copy of the dense MLP; expert 0 gets no noise."""
    expert = _expert(rest)
    if growth.target.moe.partial:
        # The dense MLP becomes the shared expert; the new experts beside it add zero at first.
        shared = rest.removeprefix("shared_expert.")
        return _drawn(name, shape, growth) if shared == rest else Rule(f"{mlp}.{shared}", _same, _same)
    if expert is None:
        return _drawn(name, shape, growth)
    return Rule(f"{mlp}.{expert[1]}", _copied(name, shape, growth, original=expert[0] == 0), why=COPIES_OF_DENSE)


def _more_experts(name: str, mlp: str, rest: str, shape: tuple[int, ...], growth: Growth) -> Rule:
    moe, m, expert = growth.source.moe, growth.expert_times, _expert(rest)
    if rest.startswith("shared_expert."):
        return _kept(name) if growth.source.shared_expert_size else _drawn(name, shape, growth)
    if rest == "router.expert_bias":
        return Rule(name, lambda old: old.repeat(m)) if moe.expert_bias_update_rate else _drawn(name, shape, growth)
    if rest == "router.expert_load":
        return Rule(name, lambda old: old.repeat(m) / m) if moe.balances_steps else _drawn(name, shape, growth)
    if m == 1:
        return _kept(name)
    if expert is None:
        if growth.split_experts:
            return Rule(name, lambda old: old.repeat(m, 1), why=UNKNOWN_SHARE)
        return Rule(name, lambda old: old.repeat(m, 1), lambda old: old.repeat(m, 1), 1 / m)
    number, leaf = expert
    part, before = divmod(number, moe.num_experts)
    source = f"{mlp}.experts.{before}.{leaf}"
    if not growth.split_experts:
        return Rule(source, _copied(name, shape, growth, original=part == 0), _same, 1 / m)
    if leaf == "down_proj.weight":
        return Rule(source, lambda old: old.chunk(m, 1)[part] * m, lambda old: old.chunk(m, 1)[part], 1 / m)
    return Rule(source, lambda old: old.chunk(m)[part], lambda old: old.chunk(m)[part])


def _copied(name: str, shape: tuple[int, ...], growth: Growth, original: bool) -> Callable[[Tensor], Tensor]:
    if original or not growth.expert_noise:
        return _same
    return lambda old: old + _noise(name, shape, growth.expert_noise * float(old.std()), growth.seed)
