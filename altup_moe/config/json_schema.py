"""JSON schema (draft 7, which every editor reads) of configuration files, written from the dataclasses, for editors.

It knows keys, types, names, ranges and descriptions; what values must fit each other only `config.checks` knows.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Sequence
from types import NoneType
from typing import Any, Literal

from altup_moe.config.field_docs import field_docs
from altup_moe.config.keys import alternatives
from altup_moe.config.ranges import RANGES, Range
from altup_moe.config.schema import RunConfig

Schema = dict[str, Any]
DIALECT = "http://json-schema.org/draft-07/schema#"
NUMBERS = {int: "integer", float: "number"}
TYPES = {**NUMBERS, bool: "boolean", str: "string", NoneType: "null"}


def run_schema() -> Schema:
    """The sections of a run. A section whose lines are all commented out is null."""
    sections = {}
    for section in dataclasses.fields(RunConfig):
        record: Any = typing.get_type_hints(RunConfig)[section.name]
        sections[section.name] = {**record_schema(record, f"{section.name}."), "type": ["object", "null"]}
    return closed(sections, _words(RunConfig.__doc__))


def record_schema(record: Any, prefix: str = "") -> Schema:
    """A dataclass as an object without further keys; fields without a default are required.

    Args:
        record: its fields have types that a YAML file can spell.
        prefix: of the dotted keys by which `RANGES` knows the numbers, with its dot.
    """
    hints, docs = typing.get_type_hints(record), field_docs(record)
    properties, required = {}, []
    for field in dataclasses.fields(record):
        schema = value_schema(hints[field.name], RANGES.get(f"{prefix}{field.name}"))
        if field.name in docs:
            schema["description"] = docs[field.name]
        if field.default is not dataclasses.MISSING:
            schema["default"] = list(field.default) if isinstance(field.default, tuple) else field.default
        elif field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        properties[field.name] = schema
    return closed(properties, _words(record.__doc__), required)


def value_schema(hint: Any, within: Range | None = None) -> Schema:
    """A field's type as a schema. ``within``: the range of its numbers."""
    members = alternatives(hint)
    choices = [choice for m in members if typing.get_origin(m) is Literal for choice in typing.get_args(m)]
    schemas: list[Schema] = [{"enum": choices}] if choices else []
    for member in members:
        if typing.get_origin(member) is tuple:
            item = typing.get_args(member)[0]
            schemas.append({"type": "array", "items": value_schema(item, within)})
            if item is str:
                # A mapping is written as a list of NAME=VALUE, too.
                schemas.append({"type": "object", "additionalProperties": {"type": ["string", "number"]}})
    plain = [member for member in members if member in TYPES]
    if plain:
        types = [TYPES[member] for member in plain]
        numbers = [member for member in plain if member in NUMBERS]
        limits = _limits(within) if within is not None and numbers else {}
        schemas.append({"type": types[0] if len(types) == 1 else types, **limits})
    if not schemas:
        raise TypeError(f"no schema for {hint}")
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def closed(properties: Schema, description: str = "", required: Sequence[str] = ()) -> Schema:
    """An object with these keys and no others."""
    schema: Schema = {"description": description} if description else {}
    schema |= {"type": "object", "properties": properties, "additionalProperties": False}
    return {**schema, "required": list(required)} if required else schema


def _limits(within: Range) -> Schema:
    limits: Schema = {"exclusiveMinimum" if within.open_low else "minimum": within.low}
    if math.isfinite(within.high):
        limits["exclusiveMaximum" if within.open_high else "maximum"] = within.high
    return limits


def _words(text: str | None) -> str:
    return " ".join((text or "").split())
