"""The JSON schema of configuration files takes every shipped file, and refuses what the loader refuses."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from altup_moe.commands.configs import schema_text
from altup_moe.commands.file_schema import file_schema
from altup_moe.config import RunConfig
from altup_moe.config.json_schema import run_schema
from altup_moe.config.load import HINTS
from altup_moe.config.ranges import RANGES
from altup_moe.config.shipped import CONFIGS, SCHEMA_FILE, shipped_files
from altup_moe.study.ladder import spec as ladder_form
from altup_moe.study.read_study import load_study

SCHEMA = file_schema()
jsonschema.Draft7Validator.check_schema(SCHEMA)
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)


def problems(content: object) -> list[str]:
    """What the schema finds wrong."""
    return [error.message for error in VALIDATOR.iter_errors(content)]


def shipped(name: str) -> dict[str, Any]:
    (file,) = [file for file in shipped_files() if file.name == name]
    return yaml.safe_load(file.path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", shipped_files(), ids=lambda file: file.name)
def test_every_shipped_file_fits(file: Any) -> None:
    assert problems(yaml.safe_load(file.path.read_text(encoding="utf-8"))) == []


def test_what_a_run_writes_fits() -> None:
    assert problems(RunConfig().to_dict()) == []


def test_the_form_of_a_study_that_its_reader_describes_fits() -> None:
    text = load_study.__globals__["__doc__"]
    example = "\n".join(line for line in text.splitlines() if line.startswith("    "))
    content = yaml.safe_load(example.replace("{model: {...}, optim: ...}", "{model: {num_layers: 2}}"))
    assert "grid" in content
    assert problems(content) == []


def test_the_form_of_a_ladder_that_its_reader_describes_fits() -> None:
    assert ladder_form.__doc__ is not None
    example = "\n".join(line for line in ladder_form.__doc__.splitlines() if line.startswith("    "))
    content = {"base": "dense", "seeds": [1], **yaml.safe_load(example)}
    assert problems(content) == []
    assert problems({**content, "budget": {"tokens": 1}}) != []
    content["ladder"]["rule"]["head_sise"] = 8
    assert "'head_sise' was unexpected" in problems(content)[0]


WRONG = [
    ("quickstart", ("model", "num_layer"), 4, "'num_layer' was unexpected"),
    ("quickstart", ("modle",), {}, "'modle' was unexpected"),
    ("quickstart", ("model", "num_layers"), "four", "is not of type 'integer'"),
    ("quickstart", ("model", "num_layers"), 0, "less than the minimum"),
    ("quickstart", ("train", "precision"), "fp16", "is not one of ['fp32', 'bf16']"),
    ("quickstart", ("data", "valid_fraction"), 1, "greater than or equal to the maximum of 1"),
    ("quickstart", ("optim", "learning_rate"), 0, "less than the minimum of"),
    ("quickstart", ("altup", "variant"), "altap", "is not one of ['altup', "),
    ("tasks", ("data", "mixture"), 3, "3 is not valid under any of the given schemas"),
    ("paper_small", ("base", "model", "num_layer"), 4, "'num_layer' was unexpected"),
    ("moe_capacity", ("grid", 0, "set", "moe.num_experts"), 4, "is not of type 'array'"),
    ("paper_small", ("bas",), {}, "'bas' was unexpected"),
    ("paper_small", ("rows", 0, "set"), {"altup.widht": 2}, "'altup.widht' was unexpected"),
    ("paper_small", ("rows", 0, "set"), {"model.num_layers": 0}, "less than the minimum"),
    ("paper_small", ("budget",), {}, "not valid under any of the given schemas"),
    ("overlap", ("launcher",), "netlap", "is not one of ['torchrun', 'netlab']"),
    ("paper_tiny", ("evaluate", "task"), "squid", "is not one of ['squad', "),
    ("paper_tiny", ("pretrain", "model", "num_layer"), 4, "'num_layer' was unexpected"),
    ("h100x8", ("memory_gb",), 80, "'memory_gb' was unexpected"),
    ("h100x8", ("memory_gib",), 0, "less than or equal to the minimum of 0"),
]


@pytest.mark.parametrize(("name", "where", "value", "says"), WRONG)
def test_a_mistake_fails(name: str, where: tuple[Any, ...], value: object, says: str) -> None:
    content = shipped(name)
    inside: Any = content
    for key in where[:-1]:
        inside = inside[key]
    inside[where[-1]] = value
    (problem,) = problems(content)
    assert says in problem


def test_every_field_has_its_description_default_and_range() -> None:
    sections = run_schema()["properties"]
    schemas = {f"{s}.{name}": schema for s in sections for name, schema in sections[s]["properties"].items()}
    assert set(schemas) == set(HINTS)
    defaults = RunConfig().to_dict()
    for key, schema in schemas.items():
        section, _, name = key.partition(".")
        assert len(schema["description"]) > 10, key
        assert schema["default"] == defaults[section][name], key
        number = schema.get("items", schema)
        assert ("minimum" in number or "exclusiveMinimum" in number) == (key in RANGES), key
    assert schemas["model.seq_length"]["description"] == "Tokens of a training sample (context length)."
    assert list(run_schema()["properties"]) == [field.name for field in dataclasses.fields(RunConfig)]


def test_the_shipped_schema_is_that_of_the_code() -> None:
    written = (CONFIGS / SCHEMA_FILE).read_text(encoding="utf-8")
    assert written == schema_text(SCHEMA), "python -m docs.generate writes it"


def test_editors_find_it_in_a_checkout() -> None:
    settings = (Path(__file__).parents[3] / ".vscode" / "settings.json").read_text(encoding="utf-8")
    assert yaml.safe_load(settings) == {"yaml.schemas": {f"configs/{SCHEMA_FILE}": ["configs/**/*.yaml"]}}
