"""Pages that repeat what the code says are what `python -m docs.generate` writes, and they leave nothing out."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from altup_moe.config.load import HINTS
from docs.generate import metrics
from docs.generate.__main__ import main
from docs.generate.configuration import spelled, values_of
from docs.generate.markdown import cell
from docs.generate.pages import COMMAND, DOCS, contents


@pytest.fixture(scope="module")
def made() -> dict[str, bytes]:
    return contents()


def test_committed_pages_are_what_the_generator_writes(made: dict[str, bytes]) -> None:
    differ = [path for path, text in made.items() if not (DOCS / path).is_file() or (DOCS / path).read_bytes() != text]
    assert not differ, f"run {COMMAND}: it writes {', '.join(differ)} anew"


def test_every_key_has_a_row_with_its_text(made: dict[str, bytes]) -> None:
    rows = re.findall(r'^\| <a id="([a-z_.0-9]+)"></a>(.*)\|$', made["reference/configuration.md"].decode(), re.M)
    assert [key for key, _ in rows] == list(HINTS)
    for key, row in rows:
        cells = re.split(r"(?<!\\)\|", row)
        assert len(cells) == 5, key
        assert len(cells[4].split()) > 1, f"{key} has no docstring"


def test_values_are_said_with_their_range() -> None:
    assert values_of("model.kv_channels", int | None) == "a whole number, at least 1, or null"
    assert values_of("data.valid_fraction", float) == "a number, in (0, 1)"
    assert values_of("train.precision", HINTS["train.precision"]) == "fp32, bf16"
    assert (spelled(True), spelled(None), spelled(()), spelled(1e-3)) == ("true", "null", "[]", "0.001")
    assert cell("a | b <c>\nd") == "a \\| b &lt;c> d"


def test_check_names_the_page_and_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("docs.generate.pages.PAGES", {"reference/exit_codes.md": lambda: "other\n"})
    monkeypatch.setattr("docs.generate.pages.PICTURES", {})
    assert main(["--check"]) == 1
    assert capsys.readouterr().out == f"docs/reference/exit_codes.md differs: run {COMMAND}\n"
    assert main(["--chekc"]) == 2


def undocumented(metrics_file: Path, documented: set[str]) -> set[str]:
    """Keys of a file of metrics that the page does not have."""
    lines = metrics_file.read_text(encoding="utf-8").splitlines()
    keys = {key for line in lines for key in json.loads(line)}
    return {key for key in keys if not re.fullmatch(r"eval/[\w.-]+/[\w.-]+", key)} - documented


def documented_metrics() -> set[str]:
    """Keys of the page of metrics.jsonl."""
    page = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(\w+)` \|", page, re.M))


def test_every_metric_has_a_text() -> None:
    assert documented_metrics() == {one.name for one in metrics.documented()} | {metrics.CHANGED}
    assert not [one.name for one in metrics.documented() if not one.doc]


def test_a_key_that_the_page_lacks_is_found(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "los": 1.0}\n', encoding="utf-8")
    assert undocumented(file, documented_metrics()) == {"los"}


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_no_heading_stands_twice(page: Path) -> None:
    """Under one heading above it; an anchor that is written out stands once in the page."""
    path: list[str] = []
    found: list[str] = []
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for marks, title in re.findall(r"^(#+) (.+)$", text, re.M):
        path = [*path[: len(marks) - 1], title]
        found.append(" / ".join(path))
    assert not [one for one, times in Counter(found).items() if times > 1]
    anchors = Counter(re.findall(r"\{#([\w-]+)\}", text))
    assert not [one for one, times in anchors.items() if times > 1]


def test_an_option_that_turns_off_says_so(made: dict[str, bytes]) -> None:
    page = made["reference/command_line.md"].decode()
    rows = re.findall(r"^\| `--no-(?!ssh)[\w-]+` \| (.*?) \| (.*?) \|$", page, re.M)  # no_ssh is the option's own name
    assert len(rows) > 3
    assert {(text.startswith("Leave out: "), default) for text, default in rows} == {(True, "done without the option")}
