"""The text of a study's page: headings, tables and the places where its script draws."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from altup_moe.report.formatting import count, digits
from altup_moe.report.page import controls, legend, table
from altup_moe.study.records import StudyRow
from altup_moe.study.report.formatting import (
    RULES,
    comparison_text,
    interval_text,
    loss_text,
    mean_and_deviation,
    ratio_text,
    sizes,
    verdict_text,
)
from altup_moe.study.report.models import LATENCIES, UNITS, Model, mean_of
from altup_moe.study.report.plot_data import loads
from altup_moe.study.report.scaling import Scaling
from altup_moe.study.report.scaling_text import scaling_text
from altup_moe.study.report.statistics import Speed
from altup_moe.study.report.summary import Summary, hardware, hardware_text


def page_text(found: Summary, ladder: Scaling | None, study: str | None, shown: Sequence[str]) -> Iterable[str]:
    """HTML of what stands on the page, without the figures that its script draws. Arguments as `study_page`."""
    done = len(found.rows) - len(found.failed)
    yield f"<h1>{escape(found.title)}</h1>"
    yield (
        f'<p class="soft">{len(found.models)} models, {done} finished rows, {len(found.failed)} failed. '
        f"Reference family: {escape(found.reference)}.</p>"
    )
    if found.notes:
        yield f"<ul>{''.join(f'<li>{escape(note)}</li>' for note in found.notes)}</ul>"
    if ladder is not None:
        yield from scaling_text(ladder)
    if found.has_speed:
        yield from _speeds(found)
    if found.differences:
        yield from _against(found)
    if found.models:
        yield from _figures(found)
        yield "<h2>Models</h2>"
        yield table([*MODEL_COLUMNS], [model_cells(model) for model in found.models])
    if found.failed:
        yield "<h2>Failed rows</h2>"
        cells = [
            [escape(r.name), str(r.seed), escape(r.family), escape(r.reason or "no reason was kept")]
            for r in found.failed
        ]
        yield table(["model", "seed", "family", "reason"], cells, text=(2, 3))
    yield from _ran(found, study, shown)


def _speeds(found: Summary) -> Iterable[str]:
    yield "<h2>Speed at equal quality</h2>"
    yield (
        f"<p>How many times as long <b>{escape(found.reference)}</b> takes for the same loss. Above 1, the model is "
        'faster. In brackets: 95 % interval. <a href="#rules">How it is computed</a></p>'
    )
    kinds = found.kinds
    cells = []
    for name, speeds in found.speeds.items():
        row = [escape(name)]
        for kind in kinds:
            ratio, note = speed_cells(speeds[kind])
            row.append(f"<b>{escape(ratio)}</b>{_small(note)}")
        cells.append(row)
    yield table(["model", *(LATENCIES[kind] for kind in kinds)], cells, ratio=True)


def _against(found: Summary) -> Iterable[str]:
    yield "<h2>Beside the reference's model of nearest size</h2>"
    yield (
        "<p>Difference of held-out losses (below 0, the model is better), and latencies as a multiple of the "
        'reference\'s (below 1, the model is faster). <a href="#rules">How it is computed</a></p>'
    )
    kinds, cells = found.kinds, []
    for name, gap in found.differences.items():
        row = [escape(name), escape(gap.other)]
        texts = [comparison_text(gap, 4, "+"), *(ratio_text(found.ratios[name][kind]) for kind in kinds)]
        for first, _, rest in (text.partition(" ") for text in texts):
            row.append(f"<b>{escape(first)}</b>{_small(rest)}")
        cells.append(row)
    yield table(["model", "against", "difference (nats)", *(LATENCIES[kind] for kind in kinds)], cells, ratio=True)


def _small(text: str) -> str:
    return f"<small>{escape(text)}</small>" if text else ""


def speed_cells(found: Speed | None) -> tuple[str, str]:
    """The ratio as text, and notes on it."""
    if found is None:
        return "-", ""
    notes = [interval_text(found.interval)]
    if found.reached == "better":
        ratio = "not reached"
        notes = [f"better than the whole curve; more than {found.at_least:.2f}", *notes]
    elif found.reached == "worse":
        ratio = "not reached"
        notes = ["worse than the curve's fastest model", *notes]
    else:
        ratio = f"{found.ratio:.2f}"
    return ratio, "; ".join(note for note in (*notes, verdict_text(found)) if note)


def _figures(found: Summary) -> Iterable[str]:
    yield "<h2>Quality against cost</h2>"
    yield (
        '<p class="soft">Means over seeds; crosses reach from the least to the most. Dotted: the Pareto front of the '
        "means. Rings: what of it is told apart from every other model.</p>"
    )
    yield controls([("front-y", "quality"), ("front-x", "against")])
    yield _figure("front")
    if any(row.curve for model in found.models for row in model.rows):
        yield "<h2>Loss curves</h2>"
        yield '<p class="soft">Means over seeds; bands reach from the least to the most.</p>'
        yield controls([("curves-y", "loss")])
        yield _figure("curves")
    if loads(found.models):
        yield "<h2>Load of the experts</h2>"
        yield '<p class="soft">Routes of the held-out part that each expert of a layer got. Grey: the mean.</p>'
        yield controls([("load-row", "row")])
        yield '<div class="chart" id="load"></div>'


def _figure(name: str) -> str:
    return f'{legend(name)}<div class="chart" id="{name}"></div><noscript>The same figure is in {name}.svg.</noscript>'


MODEL_COLUMNS = (
    "model",
    "family",
    "seeds",
    "parameters",
    "active",
    "FLOPs a token",
    "held-out loss",
    "bits per byte",
    *(f"{label}, {UNITS[kind]}" for kind, label in LATENCIES.items()),
    "tokens a second",
    "peak memory, GiB",
    "exchanges, ms a step",
    "of it waited for, ms",
    "dropped routes",
    "fullest expert / mean",
)


def model_cells(model: Model) -> list[str]:
    """Cells of a model as HTML, in the order of MODEL_COLUMNS."""

    def inside(record: str, key: str) -> str:
        return mean_and_deviation(model.stat(lambda row: getattr(getattr(row, record), key, None)))

    flops = model.stat(lambda row: row.flops_per_token)
    dropped = model.stat(lambda row: None if row.experts is None else row.experts.dropped_share)
    return [
        escape(model.name),
        escape(model.family),
        str(len(model.rows)),
        *sizes(model),
        count(mean_of(flops)),
        loss_text(model, "loss"),
        loss_text(model, "bits"),
        *(mean_and_deviation(model.along(kind)) for kind in LATENCIES),
        inside("latency", "train_tokens_per_second"),
        inside("latency", "peak_memory_gib"),
        inside("latency", "all_to_all_ms"),
        inside("latency", "exposed_ms"),
        "-" if dropped is None else f"{digits(100 * dropped.mean)} %",
        inside("experts", "max_mean_load"),
    ]


def _ran(found: Summary, study: str | None, shown: Sequence[str]) -> Iterable[str]:
    yield "<h2>What ran, and on what</h2><ul>"
    yield from (f"<li>{n} rows: {escape(hardware_text(one))}</li>" for one, n in hardware(found.rows))
    commits = list(dict.fromkeys(row.commit for row in found.rows if row.commit))
    if commits:
        yield f"<li>commit {escape(', '.join(commits))}</li>"
    yield "</ul>"
    heads = ["model", "seed", "loss", "bits per byte", "train step, ms", "steps", "tokens", "seconds", "overrides"]
    rows = [_row(row) for model in found.models for row in model.rows]
    if rows:
        yield f"<details><summary>Every finished row</summary>{table(heads, rows, text=(8,))}</details>"
    if study is not None:
        yield f"<details><summary>study.yaml</summary><pre>{escape(study)}</pre></details>"
    yield f'<p>Beside this page: {", ".join(escape(name) for name in shown)}.</p><h2 id="rules">How it is computed</h2>'
    yield f"<ul>{''.join(f'<li>{escape(rule)}</li>' for rule in RULES)}</ul>"


def _row(row: StudyRow) -> list[str]:
    loss, bits, step = "-", "-", "-"
    if row.quality is not None:
        loss, bits = f"{row.quality.valid_loss:.4f}", f"{row.quality.valid_bits_per_byte:.4f}"
    if row.latency is not None:
        step = digits(row.latency.train_step.median)
    seconds = "-" if row.train_seconds is None else digits(row.train_seconds)
    overrides = " ".join(f"{key}={value}" for key, value in row.overrides.items())
    return [
        escape(row.name),
        str(row.seed),
        loss,
        bits,
        step,
        f"{row.steps or 0:,}",
        count(row.tokens),
        seconds,
        escape(overrides),
    ]
