"""What an installation is told: ranges of versions, exact pins inside them, and the same version everywhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from altup_moe.config.packages import PACKAGES

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements(file: str) -> list[Requirement]:
    """The lines of a requirements file."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line]


def by_marker(found: list[Requirement]) -> dict[tuple[str, str], Requirement]:
    """Requirements by name and marker."""
    return {(one.name.lower(), str(one.marker or "")): one for one in found}


def pinned(one: Requirement) -> Version:
    """The version of an exact pin."""
    (specifier,) = one.specifier
    assert specifier.operator == "==", one
    return Version(specifier.version)


def test_every_pin_lies_inside_its_range() -> None:
    ranges = by_marker([Requirement(line) for line in PROJECT["dependencies"]])
    pins = by_marker(requirements("requirements.txt"))
    assert set(ranges) == set(pins)
    for key, pin in pins.items():
        assert pinned(pin) in ranges[key].specifier, key
        operators = {specifier.operator for specifier in ranges[key].specifier}
        assert operators == {">=", "<"}, f"{key}: a range has a first release and a first one that is too new"


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_each_python_gets_every_dependency_once(python: str) -> None:
    assert Version(python) in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]
    environment = {"python_version": python}
    names = [
        one.name
        for one in map(Requirement, PROJECT["dependencies"])
        if one.marker is None or one.marker.evaluate(environment)
    ]
    assert len(names) == len(set(names))
    assert {"torch", "megatron-core"} <= set(names)


def test_deepspeed_is_one_range_everywhere() -> None:
    (extra,) = map(Requirement, PROJECT["optional-dependencies"]["deepspeed"])
    (pin,) = [one for one in requirements("requirements-test.txt") if one.name == "deepspeed"]
    assert pinned(pin) in extra.specifier
    package = PACKAGES["deepspeed"]
    assert package.versions is not None
    assert set(map(str, extra.specifier)) == {f">={package.versions[0]}", f"<{package.versions[1]}"}
    assert f"'{extra.name}>={package.versions[0]},<{package.versions[1]}'" in package.install


def test_hooks_before_a_commit_use_the_tests_ruff() -> None:
    (pin,) = [one for one in requirements("requirements-test.txt") if one.name == "ruff"]
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert {tuple(hook["additional_dependencies"]) for hook in local["hooks"]} == {(str(pin),)}


def test_changelog_and_citation_name_the_version() -> None:
    version = PROJECT["version"]
    heads = re.findall(r"^## \[(.+?)\] - (\d{4}-\d{2}-\d{2})$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert heads[0][0] == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert str(citation["date-released"]) == heads[0][1]
    assert citation["license"] == PROJECT["license"]
