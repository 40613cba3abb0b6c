"""The text of a run's page: headline, tables, and the places where its script draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from altup_moe.config import RunConfig
from altup_moe.report.metric_groups import GROUPS, Metric
from altup_moe.report.page import controls, legend, table
from altup_moe.show.events import Event
from altup_moe.show.headline import Headline, facts
from altup_moe.show.read_run import Line, RunFiles

Keys = dict[str, Any]
TIMES_OF_SAMPLES = 20
"""The newest times whose sampled texts are shown."""


def page_text(
    runs: Sequence[RunFiles],
    found: Sequence[Headline],
    happened: Sequence[Sequence[Event]],
    metrics: Sequence[Metric],
    routed: Sequence[int],
    written: str,
) -> Iterable[str]:
    """HTML of what stands on the page.

    Args:
        runs, found, happened: files, figures and events of each run.
        metrics: what is drawn. routed: indices of the runs that have a heat map.
        written: when.
    """
    several = len(runs) > 1
    yield f"<h1>{escape(found[0].name) if not several else f'{len(runs)} runs'}</h1>"
    yield f'<p class="soft">Written {escape(written)}. The page does not change by itself: run the command again.</p>'
    notes = [(one.name, note) for one in found for note in one.notes]
    if notes:
        lines = (f"<li>{escape(f'{name}: ' if several else '')}{escape(note)}</li>" for name, note in notes)
        yield f'<ul class="notes">{"".join(lines)}</ul>'
    yield from _figures_of_runs(found)
    if several:
        yield from _differing(runs, found)
    yield from _charts(metrics, several)
    yield from _routing(found, routed)
    yield from _samples(runs, found)
    yield from _history(found, happened)
    yield from _configurations(runs, found)


def _figures_of_runs(found: Sequence[Headline]) -> Iterable[str]:
    if len(found) == 1:
        yield '<dl class="facts">'
        yield from (f"<div><dt>{escape(label)}</dt><dd>{escape(text)}</dd></div>" for label, text in facts(found[0]))
        yield "</dl>"
        return
    # A column for each figure: a phone scrolls the table, and names stay in sight.
    each = [{("last step" if k.startswith("step ") else k): v for k, v in facts(one)} for one in found]
    each = [{**one, "state": one["state"].partition(";")[0]} for one in each]
    labels = list(dict.fromkeys(label for one in each for label in one))
    rows = [
        [escape(one.name), *(escape(fact.get(k, "-")) for k in labels)] for one, fact in zip(found, each, strict=True)
    ]
    yield table(["run", *labels], rows, text=range(1, len(labels) + 1))


def _differing(runs: Sequence[RunFiles], found: Sequence[Headline]) -> Iterable[str]:
    flat = [flat_keys(run.keys) for run in runs]
    keys = [k for k in dict.fromkeys(k for one in flat for k in one) if k != "log.run_dir"]
    rows = [
        [escape(key), *(_value(one.get(key, "-")) for one in flat)]
        for key in keys
        if len({repr(one.get(key)) for one in flat}) > 1
    ]
    yield "<h2>What differs</h2>"
    yield table(["key", *(one.name for one in found)], rows) if rows else "<p>No key but log.run_dir differs.</p>"


def flat_keys(keys: dict[str, Keys]) -> Keys:
    """Dotted key -> value."""
    return {f"{section}.{key}": value for section, values in keys.items() for key, value in values.items()}


def _value(value: object) -> str:
    return escape("null" if value is None else str(value))


def _charts(metrics: Sequence[Metric], several: bool) -> Iterable[str]:
    if not metrics:
        return
    yield '<h2 id="curves">Curves</h2>'
    yield (
        '<p class="soft">Long curves are means of neighbouring steps; bands reach from the least to the most. '
        "Dashed lines: the run was resumed.</p>"
    )
    yield controls([("runs-x", "against")])
    yield legend("runs") if several else ""
    for group, heading in GROUPS.items():
        inside = [metric for metric in metrics if metric.group == group]
        if inside:
            yield f'<h3>{heading}</h3><div class="charts">'
            yield from (f'<div class="chart" id="chart-{metric.key.replace("/", "-")}"></div>' for metric in inside)
            yield "</div>"
    yield "<noscript>The curves are drawn by a script.</noscript>"


def _routing(found: Sequence[Headline], routed: Sequence[int]) -> Iterable[str]:
    unrecorded = [one.name for i, one in enumerate(found) if one.experts and i not in routed]
    if not routed and not unrecorded:
        return
    yield '<h2 id="routing">Load of the experts</h2>'
    if unrecorded:
        of = "" if len(found) == 1 else f" of {', '.join(unrecorded)}"
        yield f"<p>Routes by expert{escape(of)} are not recorded (an older version, or log.routing_interval 0).</p>"
    if routed:
        yield '<p class="soft">Routes of each expert over the mean of its layer, before dropping. Grey: the mean.</p>'
        yield controls([("routing-run", "run")] if len(routed) > 1 else [])
        slider = '<input id="routing-step" type="range" min="0">'
        yield f'<div class="controls"><label class="wide"><span id="routing-at">step</span> {slider}</label></div>'
        yield '<div class="chart" id="routing-layers"></div>'
        yield controls([("routing-layer", "over time, layer")])
        yield '<div class="chart" id="routing-time"></div>'


def _samples(runs: Sequence[RunFiles], found: Sequence[Headline]) -> Iterable[str]:
    texts = [(one.name, run.samples) for run, one in zip(runs, found, strict=True) if run.samples]
    if texts:
        yield "<h2>Samples during training</h2>"
    for name, lines in texts:
        steps = sorted({line["step"] for line in lines}, reverse=True)[:TIMES_OF_SAMPLES]
        for i, step in enumerate(steps):
            label = f"{name}, step {step}" if len(runs) > 1 else f"step {step}"
            rows = [_sample(line) for line in lines if line["step"] == step]
            yield f"<details{' open' if i == 0 else ''}><summary>{escape(label)}</summary>{''.join(rows)}</details>"


def _sample(line: Line) -> str:
    prompt, text = (str(line.get(key, "")) for key in ("prompt", "text"))
    return f'<pre class="sample"><b>{escape(prompt)}</b>{escape(text.removeprefix(prompt))}</pre>'


def _history(found: Sequence[Headline], happened: Sequence[Sequence[Event]]) -> Iterable[str]:
    several = len(found) > 1
    rows = [
        [*([escape(one.name)] if several else []), str(event.step), escape(event.when or "-"), escape(event.what)]
        for one, events in zip(found, happened, strict=True)
        for event in events
    ]
    if rows:
        yield "<h2>History</h2>"
        heads = [*(["run"] if several else []), "after step", "time (UTC)", "what"]
        yield table(heads, rows, text=(len(heads) - 1,))


def _configurations(runs: Sequence[RunFiles], found: Sequence[Headline]) -> Iterable[str]:
    yield "<h2>Configuration</h2>"
    defaults = flat_keys(RunConfig().to_dict())
    for run, one in zip(runs, found, strict=True):
        flat = flat_keys(run.keys)
        rows = [
            [escape(key), _value(value), _value(defaults.get(key, "no such key in this version"))]
            for key, value in flat.items()
            if key not in defaults or value != defaults[key]
        ]
        of = f"{one.name}: " if len(runs) > 1 else ""
        summary = f"{of}{len(rows)} keys that differ from the defaults"
        inside = table(["key", "value", "default"], rows, text=(1, 2)) if rows else ""
        yield f"<details{'' if len(runs) > 1 else ' open'}><summary>{escape(summary)}</summary>{inside}</details>"
        yield f"<details><summary>{escape(of)}config.yaml</summary><pre>{escape(run.text)}</pre></details>"
        versions = ", ".join(f"{name} {version}" for name, version in sorted(one.libraries.items()))
        if versions:
            yield f'<p class="soft">{escape(of)}{escape(versions)}</p>'
