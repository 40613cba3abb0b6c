"""Read a `RunConfig`: defaults, overridden by a YAML file, overridden by dotted flags; strict at every step."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import yaml

from altup_moe.altup.variants import VARIANTS
from altup_moe.config import model_schema, schema
from altup_moe.config.architectures import objective_names
from altup_moe.config.errors import ConfigError, UserError
from altup_moe.config.files import write_text
from altup_moe.config.flags import Record, parse, read_flags
from altup_moe.config.keys import alternatives, expects, field_hints, unknown_key
from altup_moe.config.plugins import load_plugins
from altup_moe.config.schema import RunConfig
from altup_moe.config.shipped import find_file

SECTIONS = [field.name for field in dataclasses.fields(RunConfig)]
HINTS = field_hints(RunConfig)
"""Type of every field of a run, by dotted key."""


def renew_names() -> None:
    """Take the values of keys that are names of tables' rows from the tables again: a program has added a row."""
    names = {"VariantName": tuple(VARIANTS), "BackendName": tuple(model_schema.BACKEND_NAMES)}
    for name, values in names.items():
        setattr(model_schema, name, Literal[values])
    schema.ObjectiveName = Literal[objective_names()]  # type: ignore[assignment]
    HINTS.update(field_hints(RunConfig))


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run, with values of the right types; `check_config` checks that they fit together.

    Args:
        path: YAML file, a mapping of sections, or the name of a shipped one; None starts from the defaults.
        overrides: words of a command line, e.g. ``["--parallel.expert", "2", "--train.steps=50"]``.

    Raises:
        ConfigError: an unknown or repeated key, or a value of the wrong type.
        UserError: a file that cannot be read, or is not YAML (with its line).
    """
    load_plugins()
    config = RunConfig() if path is None else from_dict(read_yaml(find_file(path, "configuration")))
    return parse(RunConfig, overrides, default=config) if overrides else config


def split_overrides(
    options: type[Record], args: Sequence[str], positionals: int
) -> tuple[list[str], Record, list[str]]:
    """(words without a name, a command's own options, words that override keys of a run), of one command line.

    Raises:
        ConfigError: an option that is neither, or a wrong value of the command's own.
        UserError: a word too many.
    """
    own = field_hints(options)
    found, flags = read_flags(args, {**HINTS, **own}, positionals)

    def words(keys: dict[str, Any]) -> list[str]:
        return [word for flag in flags.values() if flag.key in keys for word in flag.as_words()]

    return found, parse(options, words(own)), words(HINTS)


def from_dict(content: dict[Any, Any]) -> RunConfig:
    """Convert a nested mapping (section -> key -> value) to a `RunConfig`; missing keys take their defaults.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type.
    """
    load_plugins()
    chosen: dict[str, dict[str, object]] = {section: {} for section in SECTIONS}
    for name, values in content.items():
        section = str(name)
        if section in HINTS:
            inside, _, key = section.partition(".")
            raise ConfigError(section, values, f"write {key} inside the section {inside}")
        if section not in SECTIONS:
            first = next(iter(values.items())) if isinstance(values, dict) and values else None
            raise unknown_key(*((f"{section}.{first[0]}", first[1]) if first else (section, values)), HINTS)
        # A section whose lines are all commented out is None.
        if not isinstance(values, dict | NoneType):
            raise ConfigError(section, values, "is a section: its keys stand below it, indented")
        for key, value in (values or {}).items():
            dotted = f"{section}.{key}"
            if dotted not in HINTS:
                raise unknown_key(dotted, value, HINTS)
            chosen[section][key] = coerce(dotted, HINTS[dotted], value)
    defaults = RunConfig()
    return RunConfig(**{s: dataclasses.replace(getattr(defaults, s), **values) for s, values in chosen.items()})


def coerce(key: str, hint: Any, value: object) -> object:
    """A YAML value as the field's type: exact, but for whole numbers where a number is expected, and numbers written
    as YAML 1.1 does not read them (``1e-3`` is text to it).

    Raises:
        ConfigError: another type.
    """
    for member in alternatives(hint):
        if typing.get_origin(member) is Literal:
            # By type too: True == 1.
            if any(value == choice and type(value) is type(choice) for choice in typing.get_args(member)):
                return value
        elif typing.get_origin(member) is tuple:
            # A mapping is written as a list of NAME=VALUE.
            items = [f"{k}={v}" for k, v in value.items()] if isinstance(value, dict) else value
            item = typing.get_args(member)[0]
            if isinstance(items, list | tuple) and all(type(one) is item for one in items):
                for one in items:
                    if isinstance(one, str):
                        coerce(key, str, one)
                return tuple(items)
        elif type(value) is member:
            if isinstance(value, str) and "\0" in value:
                raise ConfigError(key, value, "has a NUL character, which no path and no name can have")
            return value
        elif member is float and type(value) in (int, str):
            try:
                return float(value)  # type: ignore[arg-type]
            except (ValueError, OverflowError):
                continue
    raise ConfigError(key, value, f"expects {expects(hint)}")


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """A YAML file's mapping (empty for an empty file), by PyYAML's safe loader.

    Raises:
        ConfigError: a key that stands twice in its section.
        UserError: it cannot be read, is not YAML, or is not a mapping.
    """
    try:
        loader = yaml.SafeLoader(Path(path).read_text(encoding="utf-8"))
        node = loader.get_single_node()
        _check_duplicates(node)
        content = {} if node is None else loader.construct_document(node)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{path}: {where}not YAML: {error.problem}") from None
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of sections ({', '.join(SECTIONS)}), not {type(content).__name__}")
    return content


def _check_duplicates(node: yaml.Node | None, prefix: str = "") -> None:
    """Raise ConfigError for a key that occurs twice; PyYAML would silently keep the last one."""
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if name in lines:
            given = value.value if isinstance(value, yaml.ScalarNode) else "..."
            raise ConfigError(name, given, f"stands twice, in lines {lines[name]} and {line}; keep one")
        lines[name] = line
        _check_duplicates(value, f"{name}.")


def save_config(config: RunConfig, path: str | Path) -> None:
    """Write the resolved configuration as YAML; `load_config` of the file gives an equal one.

    The file is written atomically, and its directory is made.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # ASCII with escapes: PyYAML writes some Unicode line breaks in a way that it reads back as spaces.
    text = yaml.safe_dump(config.to_dict(), sort_keys=False)
    write_text(target, text)
