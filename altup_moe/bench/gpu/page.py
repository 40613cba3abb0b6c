"""gpu.json as lines on the console and as a page."""

from __future__ import annotations

import math
from collections.abc import Iterator

from altup_moe.bench.gpu.checks import CHECKS
from altup_moe.bench.gpu.results import Figure, Result, ResultFile

REHEARSED = "A rehearsal on a CPU with tiny sizes: it shows that the checks work. No figure here is one of a GPU."


def value_text(figure: Figure) -> str:
    """A figure's number with its unit."""
    return f"{figure.value:.4g} {figure.unit}".strip() if math.isfinite(figure.value) else "none"


def _judged(figure: Figure, rehearsal: bool) -> str:
    if figure.met is None:
        return ""
    if rehearsal and not figure.exact:
        return "not judged"
    return "met" if figure.met else "NOT MET"


def result_lines(name: str, result: Result, rehearsal: bool) -> Iterator[str]:
    """A result for the console."""
    yield f"{result.state:<13}{name}, {result.seconds:.0f} s"
    for figure in result.found.figures:
        judged = f" ({figure.goal}, {_judged(figure, rehearsal)})" if figure.goal else ""
        yield f"    {value_text(figure):>14}  {figure.what}{judged}"
    yield from (f"    {note}" for note in result.found.notes)
    yield from (f"    {line}" for line in result.error.splitlines())


def page(file: ResultFile) -> str:
    """The whole page, Markdown."""
    return "\n".join(_page(file)) + "\n"


def _page(file: ResultFile) -> Iterator[str]:
    machine, done = file.machine, file.results
    yield "# What ran on a GPU"
    yield ""
    if file.rehearsal:
        yield f"**{REHEARSED}**"
        yield ""
    card = machine["card"] or "no GPU"
    yield f"- Card: {card}{_about_card(file)}"
    yield f"- Libraries: {', '.join(f'{name} {version}' for name, version in machine['libraries'].items())}"
    yield f"- Commit: {machine['commit'] or 'unknown'}; {machine['cores']} CPU cores"
    passed = sum(result.state == "passed" for result in done.values())
    yield f"- Checks: {passed} of {len(CHECKS)} passed; {_rest(file)}"
    yield ""
    yield "| check | shows | result | seconds |"
    yield "|---|---|---|---:|"
    for name, check in CHECKS.items():
        result = done.get(name)
        cells = (result.state, f"{result.seconds:.0f}") if result else ("not run", "")
        yield f"| {name} | {check.shows} | {' | '.join(cells)} |"
    for name, result in sorted(done.items(), key=lambda item: list(CHECKS).index(item[0])):
        yield from _section(name, result, file)


def _about_card(file: ResultFile) -> str:
    machine = file.machine
    if not machine["card"]:
        return ""
    driver = machine.get("driver") or "unknown"
    return f", {machine['memory_gib']:.0f} GiB, driver {driver}, CUDA {machine['cuda']}"


def _rest(file: ResultFile) -> str:
    others = [f"{name} {result.state}" for name, result in file.results.items() if result.state != "passed"]
    missing = [name for name in CHECKS if name not in file.results]
    return ", ".join(others + [f"{name} not run" for name in missing]) or "none is left"


def _section(name: str, result: Result, file: ResultFile) -> Iterator[str]:
    yield ""
    yield f"## {name}: {result.state}"
    yield ""
    yield f"{CHECKS[name].shows}. Begun {result.when}, commit {result.commit[:12] or 'unknown'}."
    if result.found.figures:
        yield ""
        yield "| figure | measured | goal | |"
        yield "|---|---:|---:|---|"
        for figure in result.found.figures:
            cells = (figure.what, value_text(figure), figure.goal, _judged(figure, file.rehearsal))
            yield f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
    if result.found.notes:
        yield ""
        yield from (f"- {note}" for note in result.found.notes)
    if result.error:
        yield ""
        yield "```text"
        yield result.error
        yield "```"
