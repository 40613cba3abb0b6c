"""`make docs` ends with an error where a page links to one that is not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.commands import ROOT

pytest.importorskip("mkdocs")


@pytest.mark.slow
@pytest.mark.parametrize(("link", "good"), [("other.md#here", True), ("other.md#there", False), ("none.md", False)])
def test_a_link_that_leads_nowhere_ends_the_build(link: str, good: bool, tmp_path: Path) -> None:
    (words,) = re.findall(r"\$\(BIN\)/mkdocs (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    rules = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nvalidation:\n")[2].partition("\n\n")[0]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: x\nvalidation:\n{rules}\n", encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# One\n\n[two]({link})\n", encoding="utf-8")
    (tmp_path / "docs" / "other.md").write_text("# Two\n\n## Here\n", encoding="utf-8")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", *words.split()], cwd=tmp_path, env=environment, capture_output=True, timeout=60
    )
    assert (done.returncode == 0) == good, done.stderr.decode()
