"""What is public is written down, documented, and light to import."""

from __future__ import annotations

import inspect
import subprocess
import sys
from types import FunctionType

import pytest

from altup_moe import api
from tests.api.public_api import COMMAND, CURRENT, RELEASED, ROOT, changed, listing, not_told, unreleased

HEAVY = ("torch", "megatron", "transformers", "datasets", "pandas", "numpy", "tyro", "matplotlib")


def test_names_and_signatures_are_those_written_down() -> None:
    written = CURRENT.read_text(encoding="utf-8").splitlines()
    different = changed(written, listing())
    assert not different, (
        f"the public API has changed: {', '.join(different)}. Write a line that names each in CHANGELOG.md under "
        f"Unreleased, then update {CURRENT.relative_to(ROOT)} with: {COMMAND}"
    )


def test_the_changelog_names_what_has_changed_since_the_release() -> None:
    released, now = (path.read_text(encoding="utf-8").splitlines() for path in (RELEASED, CURRENT))
    missing = not_told(released, now, (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    assert not missing, f"CHANGELOG.md, section Unreleased, does not name {', '.join(missing)} of altup_moe.api"


LOG = "# Changelog\n\n## [Unreleased]\n\n- `api.session` takes `timeout`; `Reader` reads\n\n## 0.2.0\n- `plan`\n"


@pytest.mark.parametrize(
    ("before", "now", "missing"),
    [
        (["plan(a)"], ["plan(a)"], []),
        (["plan(a)"], ["plan(a, b)"], ["plan"]),
        (["session(a)"], ["session(a, timeout)"], []),
        ([], ["class Reader", "Reader.read(self)"], []),
        (["class Reader", "Reader.read(self)"], ["class Reader", "Reader.read(self, n)"], ["Reader.read"]),
        (["gone()"], [], ["gone"]),
    ],
)
def test_a_change_needs_its_line(before: list[str], now: list[str], missing: list[str]) -> None:
    assert not_told(before, now, LOG) == missing


def test_sections_of_the_changelog() -> None:
    assert "Reader" in unreleased(LOG)
    assert "plan" not in unreleased(LOG)
    assert unreleased("## 0.2.0\n- all\n") == ""


def test_the_list_sees_signatures() -> None:
    lines = listing()
    assert (
        "plan(config: RunConfig | str | Path, cluster: str = h100x8, *, nodes: int = 1, gpus: int | None = None, "
        in "".join(line for line in lines if line.startswith("plan("))
    )
    assert "StepMetrics.loss: float" in lines
    assert "Session.micro_batches -> int" in lines
    assert any(line.startswith("Session.step(self, batches: ") for line in lines)


@pytest.mark.parametrize("name", api.__all__)
def test_every_name_says_what_it_is(name: str) -> None:
    thing = getattr(api, name)
    assert (thing.__doc__ or "").strip()
    assert not (thing.__doc__ or "").startswith(f"{name}(")  # what dataclasses write by themselves
    if isinstance(thing, FunctionType):
        if thing.__module__.startswith("altup_moe.api"):
            assert "Examples:" in thing.__doc__
            assert "Raises:" in thing.__doc__
    elif thing.__module__.startswith("altup_moe.api"):
        public = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
        undocumented = [key for key, value in public.items() if callable(value) and not inspect.getdoc(value)]
        undocumented += [key for key, value in public.items() if isinstance(value, property) and not value.__doc__]
        assert undocumented == []


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'sesion'"):
        _ = api.sesion
    assert set(api.__all__) <= set(dir(api))


@pytest.mark.slow
def test_importing_it_is_light() -> None:
    """And so are a configuration, a plan, records of runs and studies; only tables need pandas."""
    code = f"""
import sys
from altup_moe import api
def loaded(): return [name for name in {HEAVY!r} if name in sys.modules]
print(loaded())
config = api.load_config({{"train": {{"global_batch_size": 32}}}}, {{"altup.width": 4}})
api.check_config(config)
api.plan(config)
api.register_corpus("texts", lambda: ["one"])
api.read_run("tests/golden/before_restructuring/decoder").metrics()
api.read_study("configs/study/results/overlap")
with api.read_checkpoint("tests/golden/before_restructuring/t5") as checkpoint:
    checkpoint.numpy(checkpoint.names()[0])
print("torch" in loaded(), "pandas" in loaded(), "megatron" in loaded())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["[]", "False False False"]
