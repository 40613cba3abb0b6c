"""The table of faults: every row has a test that reports it, and the page repeats the table."""

from __future__ import annotations

import pytest

from tests.faults.marks import in_source, marked_tests
from tests.faults.page import PAGE, read_rows, rows, text
from tests.faults.promises import BY_KEY, FAULTS
from tests.faults.seen import VARIABLE, Seen, note, read, slowest

WITHOUT_TEST: set[str] = set()
"""Rows whose test is still to be written: this set only shrinks."""


def test_there_are_twenty_faults_with_names_of_their_own() -> None:
    assert len(FAULTS) >= 20
    assert len(BY_KEY) == len(FAULTS) == len({one.fault for one in FAULTS})
    assert all(one.codes for one in FAULTS)


def test_every_fault_has_a_test_that_reports_it() -> None:
    marked = marked_tests()
    assert {one.key for one in marked} - set(BY_KEY) == set(), "a mark names no row of the table"
    assert set(BY_KEY) - {one.key for one in marked} <= WITHOUT_TEST
    assert [one.test for one in marked if not one.reports] == [], "these do not take the fixture `saw`"


def test_marks_are_found_in_parametrised_tests() -> None:
    source = """
@pytest.mark.fault("kill-rank")
def test_a(saw): pass

@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.fault("kill-node"))])
def test_b(n): pass
"""
    found = [(one.key, one.test, one.reports) for one in in_source(source, "x.py")]
    assert found == [("kill-rank", "x.py::test_a", True), ("kill-node", "x.py::test_b", False)]


def test_the_page_has_the_rows_of_the_table() -> None:
    """All but the seconds and last lines, which change with every run of the tests."""
    page = PAGE.read_text(encoding="utf-8")
    found = read_rows(page)
    assert [row[:3] for row in found] == [row[:3] for row in rows({})]
    for one, row in zip(FAULTS, found, strict=True):
        assert len(row) == 6, one.key
        assert row[4] in ("", *map(str, one.codes)), one.key


def test_the_page_shows_what_was_seen() -> None:
    seen = {"kill-rank": Seen("kill-rank", 3.25, 137, "/tmp/x/launch: rank 1 | 'ended' <137>")}
    page = text(seen, "a machine", "0123")
    row = read_rows(page)[[one.key for one in FAULTS].index("kill-rank")]
    assert row[3:] == ["3.2", "137", "`.../launch: rank 1 \\| 'ended' <137>`"]
    assert f"1 of {len(FAULTS)} promises" in page
    assert "Hardware: a machine. Commit: 0123." in page


def test_a_report_is_checked_and_kept(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "seen.jsonl"
    monkeypatch.setenv(VARIABLE, str(file))
    assert note("kill-rank", 1.23, -9, "first\nlast \n\n") == Seen("kill-rank", 1.2, 137, "last")
    note("kill-rank", 3.0, 137, "later")
    with pytest.raises(AssertionError, match="kill-rank: exit code 0; 137 is promised"):
        note("kill-rank", 9.0, 0, "")
    assert slowest(read(file)) == {"kill-rank": Seen("kill-rank", 3.0, 137, "later")}


def test_a_marked_test_must_report(pytester_run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixture fails a test that has the mark and tells nothing."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert pytester_run('@pytest.mark.fault("kill-rank")\ndef test_a(saw): saw(1.0, 137, "x")') == 0
    assert pytester_run('@pytest.mark.fault("kill-rank")\ndef test_a(saw): pass') == 1
    assert pytester_run("def test_a(saw): saw(1.0, 2, 'a case without the mark')") == 0


@pytest.fixture
def pytester_run(tmp_path, request):
    """Run a test's source in a pytest of its own, within this process; its exit code."""
    from pathlib import Path

    def run(source: str) -> int:
        number = len(list(tmp_path.iterdir()))
        file = tmp_path / f"test_inner_{number}.py"
        file.write_text(f"import pytest\nfrom tests.conftest import saw\n\n{source}\n")
        root = Path(__file__).parents[2]
        options = ["-p", "no:cacheprovider", "-c", str(root / "pyproject.toml"), f"--rootdir={root}", "--no-header"]
        return int(pytest.main([*options, str(file)]))

    return run
