"""Records of a study's `ladder`: families, sizes by a rule, numbers of tokens, and what is tuned.

    ladder:
      sizes: [32, 48, 64, 96]            # model.hidden_size; the rule gives the rest
      rule: {width_per_layer: 16, head_size: 16, ffn_ratio: 2.67, expert_ffn_ratio: 1.33, multiple_of: 8}
      tokens_per_parameter: [10, 20, 40] # of the first family at that size, without its tables; or the same for all
                                         # sizes: tokens: [400_000]
      decay: 0.2                         # share of the steps in which the rate decays (schedule wsd)
      seeds: {32: [1, 2, 3, 4, 5]}       # of a size, in place of the study's
      families:
        - {name: dense}
        - {name: altup-k2, set: {altup.width: 2}}
      tune: {optim.learning_rate: [1.0e-3, 2.0e-3, 4.0e-3]}

The idea is that of OLMo-core's model ladder (github.com/allenai/OLMo-core, `model_ladder`): one run with a warm-up, a
constant rate and a short decay (WSD) passes through the beginnings of all shorter ones, so each smaller number of
tokens costs only its decay.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from altup_moe.config import ConfigError


@dataclass(frozen=True)
class SizeRule:
    """How a size, model.hidden_size, decides the other sizes of a model."""

    width_per_layer: int = 16
    """Features for which there is one layer; there are two layers at least."""
    head_size: int = 16
    """Features of an attention head."""
    ffn_ratio: float = 8 / 3
    """model.ffn_hidden_size over the size."""
    expert_ffn_ratio: float = 4 / 3
    """moe.ffn_hidden_size over the size."""
    multiple_of: int = 8
    """What both are rounded up to a multiple of."""

    def keys(self, size: int) -> dict[str, Any]:
        """Dotted keys of a model of a size.

        Raises:
            ConfigError: heads do not divide it.
        """
        if size % self.head_size:
            near = max(1, round(size / self.head_size)) * self.head_size
            raise ConfigError("ladder.sizes", size, f"a multiple of ladder.rule.head_size would fit, as {near}")
        heads = size // self.head_size
        return {
            "model.hidden_size": size,
            "model.num_layers": max(2, round(size / self.width_per_layer)),
            "model.num_attention_heads": heads,
            "model.num_query_groups": heads,
            "model.ffn_hidden_size": self._rounded(self.ffn_ratio * size),
            "moe.ffn_hidden_size": self._rounded(self.expert_ffn_ratio * size),
        }

    def _rounded(self, features: float) -> int:
        return -(-round(features) // self.multiple_of) * self.multiple_of


@dataclass(frozen=True)
class Family:
    """Models that differ in size alone. ``set``: dotted keys beside those of the rule."""

    name: str
    set: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Tune:
    """What is tuned for every family and size, on the fewest tokens and its first seed. ``values``: ascending."""

    key: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Ladder:
    """All of it; see the module. ``tokens_per_parameter`` or ``tokens``, the other is empty: ascending.

    ``seeds``: size -> its seeds, where they are not the study's.
    """

    sizes: tuple[int, ...]
    families: tuple[Family, ...]
    tokens_per_parameter: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    rule: SizeRule = SizeRule()
    decay: float = 0.2
    tune: Tune | None = None
    seeds: dict[int, tuple[int, ...]] = field(default_factory=dict)
