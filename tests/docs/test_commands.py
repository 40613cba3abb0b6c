"""Every command on the pages of the documentation runs, in order, in one empty directory for each page."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.commands import ROOT, Item, PageError, _items, counts, items_of, pages
from tests.docs.forks import TIMED_OUT, Ended, Forks, cpu_of_children
from tests.docs.test_generated_pages import documented_metrics, undocumented

TIMEOUT, LONG_TIMEOUT = 100.0, 600.0
"""Seconds that a command may take; and in test-all."""
LAST_LINES = 15
OPERATORS = set("|&;<>()$`*?~{}")

PAGES = [page for page in pages() if any(item.tier == "run" and item.kind != "file" for item in items_of(page))]
LONG_PAGES = [page for page in pages() if any(item.tier == "long" for item in items_of(page))]


def name_of(page: Path) -> str:
    """A page as the tests are called."""
    return page.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with Forks(tmp_path_factory.mktemp("forks")) as server:
        yield server


def program_path(directory: Path) -> str:
    """A PATH on which `altup-moe` and `python` are this checkout's."""
    directory.mkdir()
    for name, words in (("altup-moe", f"{shlex.quote(sys.executable)} -m altup_moe"), ("python", sys.executable)):
        program = directory / name
        program.write_text(f'#!/bin/sh\nexec {words} "$@"\n', encoding="utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return os.pathsep.join([str(directory), str(Path(sys.executable).parent), os.environ["PATH"]])


def settings_and_words(command: str) -> tuple[dict[str, str], list[str]] | None:
    """A command without a shell's operators as (NAME=VALUE before it, words); None if it needs a shell."""
    unquoted = re.sub(r"'[^']*'|\"[^\"$`\\]*\"", "", command)
    if OPERATORS & set(unquoted):
        return None
    words = shlex.split(command)
    settings: dict[str, str] = {}
    while words and "=" in words[0] and words[0].partition("=")[0].isidentifier():
        name, _, value = words.pop(0).partition("=")
        settings[name] = value
    return settings, words


def run_item(item: Item, directory: Path, forks: Forks, path: str) -> Ended:
    """Do what an item asks for."""
    timeout = LONG_TIMEOUT if item.tier == "long" else TIMEOUT
    environment = {"PYTHONPATH": str(ROOT), "PATH": path, "COLUMNS": "120"}
    if item.kind == "file":
        (directory / item.name).write_text(item.text, encoding="utf-8")
        return Ended(0, "", 0.0)
    if item.kind == "python":
        return forks.python(item.text, directory, environment, timeout)
    parsed = settings_and_words(item.text)
    if parsed is not None and parsed[1][:1] == ["altup-moe"]:
        return forks.altup_moe(parsed[1][1:], directory, environment | parsed[0], timeout)
    return in_a_shell(item.text, directory, environment, timeout)


def in_a_shell(command: str, directory: Path, environment: dict[str, str], timeout: float) -> Ended:
    """A line of bash as a process; a pipe fails with its first part."""
    before = cpu_of_children()
    try:
        done = subprocess.run(
            ["timeout", "--kill-after=5", str(timeout), "bash", "-o", "pipefail", "-c", command],
            cwd=directory,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout + 10,
        )
    except subprocess.TimeoutExpired as error:
        return Ended(TIMED_OUT, str(error.output or ""), timeout)
    return Ended(done.returncode, done.stdout, cpu_of_children() - before)


def run_items(items: list[Item], directory: Path, forks: Forks) -> None:
    """Do a page's items in order; the first that ends otherwise than the page says is reported."""
    path = program_path(directory / "bin")
    work = directory / "work"
    work.mkdir()
    took = []
    for item in items:
        ended = run_item(item, work, forks, path)
        took.append((ended.seconds, item.line))
        last = "\n".join(ended.output.splitlines()[-LAST_LINES:])
        said = f"exit code {ended.code}" + (f" (not {item.code})" if item.code else "")
        if ended.code != item.code:
            pytest.fail(f"{item.page}:{item.line}: {said}\n  {item.text.strip()}\n{last}", pytrace=False)
    slowest = [(round(seconds, 1), line) for seconds, line in sorted(took)[-3:]]
    print(f"{items[0].page}: {sum(seconds for seconds, _ in took):.1f} CPU seconds; slowest (seconds, line): {slowest}")
    for metrics in work.rglob("metrics.jsonl"):
        assert not undocumented(metrics, documented_metrics()), metrics


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_of(page: Path, tmp_path: Path, forks: Forks) -> None:
    run_items([item for item in items_of(page) if item.tier == "run"], tmp_path, forks)


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", LONG_PAGES, ids=name_of)
def test_all_commands_of(page: Path, tmp_path: Path, forks: Forks) -> None:
    run_items([item for item in items_of(page) if item.tier != "not run"], tmp_path, forks)


def test_counts_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """And every page can be read: comments belong to blocks, and what is not run says why."""
    lines = counts()
    with capsys.disabled():
        print(f"\ndocumentation: {lines[0]}")
    assert lines[0].endswith(" not run")


PAGE = """\
<!-- setup: altup-moe train quickstart -->
<!-- run small: --train.steps 2 -->
```bash
altup-moe train quickstart \\
  --log.run_dir runs/a    # a comment
altup-moe show runs/a
```
<!-- not run: needs two nodes -->
```bash
srun altup-moe train quickstart
```
```yaml
# file: my.yaml
model: {num_layers: 2}
```
<!-- run in test-all -->
<!-- exit code: 2 -->
  ```bash
  altup-moe study run quick_pareto
  altup-moe train --modle.x 3
  ```
```python
print(1)
```
```text
step 1
```
"""


SHARED = "--data.cache ../../tokens --train.micro_batch_size 2 --train.global_batch_size 4"


def test_a_page_is_read() -> None:
    found = list(_items("page.md", PAGE))
    assert [(item.line, item.kind, item.text, item.tier, item.code) for item in found] == [
        (1, "command", f"altup-moe train quickstart {SHARED}", "run", 0),
        (4, "command", f"altup-moe train quickstart --log.run_dir runs/a --train.steps 2 {SHARED}", "run", 0),
        (6, "command", "altup-moe show runs/a", "run", 0),
        (10, "command", "srun altup-moe train quickstart", "not run", 0),
        (13, "file", "# file: my.yaml\nmodel: {num_layers: 2}\n", "run", 0),
        (19, "command", "altup-moe study run quick_pareto", "long", 0),
        (20, "command", "altup-moe train --modle.x 3", "long", 2),
        (23, "python", "print(1)\n", "run", 0),
    ]
    assert found[3].reason == "needs two nodes"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<!-- not run -->\n```bash\nls\n```\n", "needs a reason"),
        ("<!-- not run: x -->\nwords\n", "belongs to no block"),
        ("<!-- run smal: x -->\n```bash\nls\n```\n", "not understood"),
        ("```bash\nls\n", "no end"),
    ],
)
def test_a_page_that_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(PageError, match=said):
        list(_items("page.md", text))


def test_words_of_a_command() -> None:
    assert settings_and_words("A=1 altup-moe generate runs/a --prompt 'What is (this)?'") == (
        {"A": "1"},
        ["altup-moe", "generate", "runs/a", "--prompt", "What is (this)?"],
    )
    assert settings_and_words("altup-moe show runs/a | head -3") is None
    assert settings_and_words("ls > a.txt") is None


@pytest.mark.slow
def test_a_failing_command_is_reported(tmp_path: Path, forks: Forks) -> None:
    items = list(_items("page.md", "```bash\naltup-moe --version\naltup-moe train nothing.yaml\n```\n"))
    said = r"page.md:3: exit code 2\n  altup-moe train nothing.yaml\naltup-moe: error: .*nothing.yaml"
    with pytest.raises(pytest.fail.Exception, match=said):
        run_items(items, tmp_path, forks)


@pytest.mark.slow
def test_a_child_that_hangs_is_killed_with_its_own_children(tmp_path: Path, forks: Forks) -> None:
    code = "import subprocess, time\nprint(subprocess.Popen(['sleep', '600']).pid, flush=True)\ntime.sleep(600)\n"
    ended = forks.python(code, tmp_path, {}, 1.0)
    assert ended.code == TIMED_OUT
    pid = int(ended.output)
    assert not alive(pid)
    assert forks.python("raise SystemExit(7)", tmp_path, {}, 10.0).code == 7
    assert "ZeroDivisionError" in forks.python("1 / 0", tmp_path, {}, 10.0).output


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"
