"""From a YAML file and dotted overrides to a `RunConfig`, strictly: defaults <- file <- command line.

Both sources become one nested dict of plain values and pass the same checks of keys and types, so an error reads the
same wherever it came from. Which values fit together is for `checks`.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from altup_moe.config.errors import ConfigError, UserError
from altup_moe.config.schema import RunConfig

Values = dict[str, dict[str, Any]]
"""section -> key -> value."""


@cache
def field_types() -> dict[str, Any]:
    """Dotted key -> type of every field of a `RunConfig`."""
    sections = typing.get_type_hints(RunConfig)
    return {f"{s}.{key}": hint for s, cls in sections.items() for key, hint in typing.get_type_hints(cls).items()}


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a configuration.

    Args:
        path: a YAML file of sections, or None for the defaults.
        overrides: command-line words, ``--section.key value`` or ``--section.key=value``.
    Raises:
        UserError: no such file, or no YAML. ConfigError: unknown or doubled key, wrong type.
    """
    values = read_yaml(Path(path)) if path is not None else {}
    for key, value in parse_overrides(overrides).items():
        section, name = key.split(".")
        values.setdefault(section, {})[name] = value
    return from_values(values)


def from_values(values: Mapping[str, Any]) -> RunConfig:
    """Build a `RunConfig` from plain nested values, checking every key and type."""
    sections = {}
    for section, cls in typing.get_type_hints(RunConfig).items():
        given = values.get(section)
        given = {} if given is None else given
        if not isinstance(given, Mapping):
            raise ConfigError(section, given, f"must be a section of keys: {', '.join(_keys(section))}")
        checked = {str(key): check_value(f"{section}.{key}", value) for key, value in given.items()}
        sections[section] = cls(**checked)
    for key in values:
        if key not in sections:
            raise unknown_key(str(key), values[key])
    return RunConfig(**sections)


def check_value(key: str, value: object) -> object:
    """The value of a dotted key in its field's type.

    Raises:
        ConfigError: no such key, or another type.
    """
    hint = field_types().get(key)
    if hint is None:
        raise unknown_key(key, value)
    for option in _options(hint):
        if option is float and isinstance(value, str):
            # YAML reads 1e-3 (no dot) as text.
            try:
                return float(value)
            except ValueError:
                continue
        if option is float and type(value) is int:
            return float(value)
        if value == option[0] and type(value) is type(option[0]) if isinstance(option, tuple) else type(value) is option:
            return value
    raise ConfigError(key, value, f"must be {describe(hint)}")


def _options(hint: Any) -> list[Any]:
    """A type as a list of plain types and one-element tuples (literal values)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(hint) for option in _options(part)]
    if typing.get_origin(hint) is Literal:
        return [(value,) for value in typing.get_args(hint)]
    return [hint]


def describe(hint: Any) -> str:
    """A type in words, as an error says it."""
    words = {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    names = [f"{o[0]}" if isinstance(o, tuple) else words[o] for o in _options(hint)]
    return " or ".join(names) if len(names) < 3 else f"one of {', '.join(names)}"


def unknown_key(key: str, value: object) -> ConfigError:
    """The error for a key that no field has, with the nearest that one has."""
    known = list(field_types())
    sections = list(typing.get_type_hints(RunConfig))
    nearest = difflib.get_close_matches(key, known + sections, n=1, cutoff=0.5)
    if not nearest:
        leaf = key.rsplit(".", 1)[-1]
        leaves = {k.rsplit(".", 1)[-1]: k for k in known}
        nearest = [leaves[n] for n in difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.5)]
    hint = f"; nearest is {nearest[0]}" if nearest else f"; sections are {', '.join(sections)}"
    return ConfigError(key, value, f"unknown key{hint}")


def _keys(section: str) -> list[str]:
    return [key.split(".")[1] for key in field_types() if key.startswith(f"{section}.")]


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                line = key_node.start_mark.line + 1
                raise UserError(f"{key_node.start_mark.name} line {line}: {key_node.value} is given twice")
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Values:
    """The nested values of a YAML file, unchecked.

    Raises:
        UserError: it cannot be read, is no YAML (with the line), or is no mapping.
    """
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.load(file, _StrictLoader)  # noqa: S506 (a SafeLoader)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is no UTF-8 text ({error.reason})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: is no YAML ({getattr(error, 'problem', error)})") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold sections ({', '.join(typing.get_type_hints(RunConfig))})")
    return {str(section): dict(keys) if isinstance(keys, dict) else keys for section, keys in values.items()}


def parse_overrides(words: Sequence[str]) -> dict[str, object]:
    """Dotted key -> value of command-line words; hyphens in keys are read as underscores.

    Raises:
        ConfigError: an unknown key, a key without a value, a value of the wrong type. UserError: a stray word.
    """
    overrides: dict[str, object] = {}
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"unexpected {word!r}: overrides are --section.key value, e.g. --train.steps 50")
        name, equals, text = word[2:].partition("=")
        key = name.replace("-", "_")
        hint = field_types().get(key)
        if hint is None:
            raise unknown_key(name, text if equals else (words[0] if words else ""))
        if not equals:
            if not words:
                raise ConfigError(key, "", f"needs a value: {describe(hint)}")
            text = words.pop(0)
        overrides[key] = check_value(key, _from_text(text, hint))
    return overrides


def _from_text(text: str, hint: Any) -> object:
    options = _options(hint)
    if type(None) in options and text.lower() in ("none", "null"):
        return None
    texts = [o for o in options if o is str or (isinstance(o, tuple) and isinstance(o[0], str))]
    if texts:
        return text
    try:
        return yaml.safe_load(text.lower() if bool in options else text)
    except yaml.YAMLError:
        return text


def save_config(config: RunConfig, path: str | Path) -> None:
    """Write the resolved configuration as YAML that `load_config` reads back to an equal one. Whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(yaml.safe_dump(dataclasses.asdict(config), sort_keys=False), encoding="utf-8")
    os.replace(partial, path)
