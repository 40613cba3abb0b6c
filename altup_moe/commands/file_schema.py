"""One JSON schema for all kinds of shipped files, told apart by keys that only one kind has."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from altup_moe.config.json_schema import DIALECT, Schema, closed, record_schema, run_schema
from altup_moe.config.load import HINTS
from altup_moe.plan.cluster import Cluster
from altup_moe.recipe.recipe import WORD_TASKS, Evaluation
from altup_moe.study.ladder.spec import SizeRule
from altup_moe.study.spec import Budget, MeasureSpec

COUNT: Schema = {"type": "integer", "minimum": 1}
TEXT: Schema = {"type": "string"}
SEEDS: Schema = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "uniqueItems": True}
LAUNCH: dict[str, Schema] = {
    "ranks": {**COUNT, "description": "Processes of a row."},
    "launcher": {"enum": ["torchrun", "netlab"], "description": "netlab: each rank is a node of a simulated network."},
    "rate": {"type": ["string", "null"], "description": "Rate of netlab's network, as in 200mbit."},
}


STUDIES = ("budget", "ladder")
"""A study has one of both."""


def file_schema() -> Schema:
    """The schema of a configuration, a study, a recipe or a cluster."""
    kinds = {
        "study": (STUDIES, _study()),
        "recipe": (("pretrain",), _recipe()),
        "cluster": (("gpus_per_node",), _cluster()),
    }
    told: Schema = _ref("run")
    for kind, (keys, _) in reversed(kinds.items()):
        told = {"if": {"anyOf": [{"required": [key]} for key in keys]}, "then": _ref(kind), "else": told}
    definitions = {"run": run_schema(), **{kind: schema for kind, (_, schema) in kinds.items()}}
    return {"$schema": DIALECT, "title": "altup-moe", **told, "definitions": definitions}


def _ref(kind: str, *below: str) -> Schema:
    return {"$ref": "/".join(["#/definitions", kind, *below])}


def _below(names: list[str]) -> Iterator[str]:
    """Where the schema of a section's field lies in that of a run."""
    for name in names:
        yield from ("properties", name)


def _either(kind: str, then: Schema, otherwise: Schema) -> Schema:
    """One of two forms by the value's type: an editor then names the mistake inside the form, as `anyOf` does not."""
    return {"if": {"type": kind}, "then": then, "else": otherwise}


def _study() -> Schema:
    fields = {key: _ref("run", *_below(key.split("."))) for key in HINTS} | LAUNCH
    lists: dict[str, Schema] = {key: {"type": "array", "items": schema} for key, schema in fields.items()}
    row, grid = _named(fields, ["name"]), _named(lists, ["set"])
    budget = record_schema(Budget)
    budget["properties"] = {"tokens": COUNT, "seconds": {"type": "number", "exclusiveMinimum": 0}}
    budget["oneOf"] = [{"required": ["tokens"]}, {"required": ["seconds"]}]
    return closed(
        {
            "name": {**TEXT, "description": "Name of the study; else the file's name."},
            "base": {**_either("string", {}, _ref("run")), "description": "Sections of a run, or a run's file."},
            "seeds": SEEDS,
            "budget": budget,
            "rows": {"type": "array", "items": row},
            "grid": _either("array", {"items": grid}, _ref("study", "properties", "grid", "then", "items")),
            "ladder": _ladder(fields),
            "measure": record_schema(MeasureSpec),
            "threads": {**COUNT, "description": "CPU threads of a rank."},
            **LAUNCH,
        },
        "A study: every row with every seed is a run.",
        ["base", "seeds"],
    ) | {"oneOf": [{"required": [key]} for key in STUDIES]}


def _ladder(fields: dict[str, Schema]) -> Schema:
    positive: Schema = {"type": "number", "exclusiveMinimum": 0}
    values: Schema = {"type": "array", "items": positive, "minItems": 3}
    numbers = {key: values for key, hint in HINTS.items() if hint is float}
    family = closed(
        {
            "name": {**TEXT, "description": "Name of the family."},
            "set": closed(fields, "Fields of its models beside those of the rule, by dotted key."),
        },
        required=["name"],
    )
    rule = record_schema(SizeRule)
    for schema in rule["properties"].values():
        schema |= {"exclusiveMinimum": 0}
    return closed(
        {
            "sizes": {"type": "array", "items": COUNT, "minItems": 1, "description": "model.hidden_size, ascending."},
            "rule": rule,
            "tokens_per_parameter": {
                "type": "array",
                "items": positive,
                "minItems": 1,
                "description": "Tokens a parameter of the first family at that size, tables left out; ascending.",
            },
            "tokens": {
                "type": "array",
                "items": COUNT,
                "minItems": 1,
                "description": "Numbers of tokens at every size, in place of tokens_per_parameter; ascending.",
            },
            "seeds": {
                "type": "object",
                "additionalProperties": SEEDS,
                "description": "Seeds of a size, in place of the study's.",
            },
            "decay": {**positive, "exclusiveMaximum": 1, "description": "Share of the steps in which the rate decays."},
            "families": {"type": "array", "items": family, "minItems": 1},
            "tune": closed(numbers, "The key that is tuned for each family and size, and the values to try first.")
            | {"minProperties": 1, "maxProperties": 1},
        },
        "Families at several sizes, each on several numbers of tokens, with tuned rates.",
        ["sizes", "families"],
    ) | {"oneOf": [{"required": [key]} for key in ("tokens_per_parameter", "tokens")]}


def _named(fields: dict[str, Schema], required: list[str]) -> Schema:
    """A row, or a grid of rows."""
    return closed(
        {
            "name": {**TEXT, "description": "Name of the row; a grid's holds {section.key}."},
            "family": {**TEXT, "description": "Rows of a family are one curve of the report."},
            "set": closed(fields, "Fields that differ from the base, by dotted key."),
            "after": {**TEXT, "description": "Name of a row above it, from whose weights it starts."},
        },
        required=required,
    )


def _recipe() -> Schema:
    evaluate = record_schema(Evaluation)
    evaluate["properties"]["task"] = {"enum": list(WORD_TASKS)}
    parts: dict[str, Schema] = {
        "seeds": SEEDS,
        "pretrain": _ref("run"),
        "finetune": _either("array", {"items": _ref("run"), "minItems": 1}, _ref("run")),
        "evaluate": evaluate,
    }
    return closed(parts, "A recipe: pretrain, fine-tune, evaluate.", ["pretrain", "finetune", "evaluate"])


def _cluster() -> Schema:
    optional = ("usable_memory", "cpu_cost_model")
    names = [field.name for field in dataclasses.fields(Cluster) if field.name != "name"]
    properties: dict[str, Schema] = {name: {"type": "number", "exclusiveMinimum": 0} for name in names}
    properties |= {"gpus_per_node": COUNT, "cpu_cost_model": {"type": "object"}}
    return closed(properties, "One kind of node and the network.", [name for name in names if name not in optional])
