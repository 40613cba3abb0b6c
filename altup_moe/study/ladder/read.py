"""Read the `ladder` section of a study's file."""

from __future__ import annotations

from typing import Any

from altup_moe.config import ConfigError
from altup_moe.config.keys import unknown_key
from altup_moe.config.load import HINTS
from altup_moe.config.ranges import COUNT, POSITIVE, Range
from altup_moe.study.grid import safe
from altup_moe.study.ladder.spec import Family, Ladder, SizeRule, Tune
from altup_moe.study.read_record import mapping, read_seeds, record

_KEYS = ("sizes", "rule", "tokens_per_parameter", "tokens", "decay", "families", "tune", "seeds")
_OF_THE_RULE = ("model.hidden_size", "model.num_layers", "model.num_attention_heads", "model.num_query_groups")
_OF_THE_LADDER = ("optim.schedule", "optim.decay_steps", "checkpoint.save_at", "train.steps")


def read_ladder(content: object) -> Ladder:
    """The section as records.

    Raises:
        ConfigError: a key or value that does not fit, by its dotted key.
    """
    values = mapping("ladder", content)
    for key in values:
        if key not in _KEYS:
            raise unknown_key(f"ladder.{key}", values[key], [f"ladder.{known}" for known in _KEYS])
    sizes = _ascending("ladder.sizes", values.get("sizes"), COUNT, int)
    if "tokens" in values and "tokens_per_parameter" in values:
        raise ConfigError("ladder.tokens", values["tokens"], "ladder.tokens_per_parameter stands too; one of the two")
    tokens: dict[str, Any] = {}
    if "tokens" in values:
        tokens["tokens"] = _ascending("ladder.tokens", values["tokens"], COUNT, int)
    else:
        listed = values.get("tokens_per_parameter")
        tokens["tokens_per_parameter"] = _ascending("ladder.tokens_per_parameter", listed, POSITIVE, float)
    rule: SizeRule = record(SizeRule, values.get("rule") or {}, "ladder.rule.")
    for key, value in vars(rule).items():
        (POSITIVE if isinstance(value, float) else COUNT).check(f"ladder.rule.{key}", value)
    decay = values.get("decay", Ladder.decay)
    if type(decay) is not float:
        raise ConfigError("ladder.decay", decay, "a number in (0, 1) would fit")
    Range(0, 1, open_low=True, open_high=True).check("ladder.decay", decay)
    families, tune = _families(values.get("families")), _tune(values.get("tune"))
    seeds = _seeds(values.get("seeds", {}), sizes)
    return Ladder(sizes, families, rule=rule, decay=decay, tune=tune, seeds=seeds, **tokens)


def _seeds(content: object, sizes: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Seeds of sizes that have their own."""
    found = mapping("ladder.seeds", content)
    for size, listed in found.items():
        if size not in sizes:
            fits = f"no size of the ladder; one of {', '.join(map(str, sizes))} would fit"
            raise ConfigError(f"ladder.seeds.{size}", listed, fits)
    return {size: tuple(read_seeds(f"ladder.seeds.{size}", listed)) for size, listed in found.items()}


def _ascending(key: str, content: object, allowed: Range, kind: type) -> tuple[Any, ...]:
    if not isinstance(content, list) or not content or any(type(one) not in (int, kind) for one in content):
        raise ConfigError(key, content, f"a list of {'whole ' if kind is int else ''}numbers would fit")
    for one in content:
        allowed.check(key, one)
    if sorted(set(content)) != content:
        raise ConfigError(key, content, "the same in ascending order, each once, would fit")
    return tuple(kind(one) for one in content)


def _families(content: object) -> tuple[Family, ...]:
    if not isinstance(content, list) or not content:
        raise ConfigError("ladder.families", content, "a list of families, each with a name and a set, would fit")
    found: dict[str, Family] = {}
    for number, one in enumerate(content):
        values = mapping(f"ladder.families.{number}", one)
        for key in values:
            if key not in ("name", "set"):
                known = [f"ladder.families.{number}.{each}" for each in ("name", "set")]
                raise unknown_key(f"ladder.families.{number}.{key}", values[key], known)
        name = values.get("name")
        if not isinstance(name, str) or safe(name) != name or not name:
            key = f"ladder.families.{number}.name"
            raise ConfigError(key, name, "letters, digits, dots, dashes and underscores would fit")
        if name in found:
            raise ConfigError(f"ladder.families.{number}.name", name, "stands twice; names must differ")
        keys = mapping(f"ladder.families.{name}.set", values.get("set") or {})
        for key in keys:
            if key in (*_OF_THE_RULE, *_OF_THE_LADDER):
                whose = "ladder.rule" if key in _OF_THE_RULE else "ladder"
                raise ConfigError(f"ladder.families.{name}.set.{key}", keys[key], f"{whose} decides it")
        found[name] = Family(name, keys)
    return tuple(found.values())


def _tune(content: object) -> Tune | None:
    if content is None:
        return None
    values = mapping("ladder.tune", content)
    if len(values) != 1:
        raise ConfigError("ladder.tune", content, "one key with its values would fit, as {optim.learning_rate: [...]}")
    ((key, listed),) = values.items()
    if key not in HINTS:
        raise unknown_key(f"ladder.tune.{key}", listed, [f"ladder.tune.{known}" for known in HINTS])
    if HINTS[key] is not float:
        raise ConfigError(f"ladder.tune.{key}", listed, "a key that is a number can be tuned, as optim.learning_rate")
    tried = _ascending(f"ladder.tune.{key}", listed, POSITIVE, float)
    if len(tried) < 3:
        raise ConfigError(f"ladder.tune.{key}", listed, "three values or more would fit")
    return Tune(key, tried)
