"""The figures that stand above a run's page, on stdout and in its JSON."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from altup_moe.checkpoint.layout import describe_layout
from altup_moe.config import RunConfig
from altup_moe.config.run_directory import config_file
from altup_moe.parallel.counts import count_parameters
from altup_moe.report.formatting import count, digits, duration
from altup_moe.show.events import resumes
from altup_moe.show.read_run import Line, RunFiles, number, numbers

State = Literal["not started", "running", "finished", "stopped"]
RECENT = 50
"""Steps whose median is the present speed."""


@dataclass(frozen=True)
class Headline:
    """Figures of a run; None is what its files do not say. Losses in nats a token, memory of rank 0.

    ``tokens_per_second``, ``step_seconds``: medians of the last `RECENT` steps. ``trained_seconds``: the sum of all
    steps. ``left_seconds``: of a running one, at the present speed.
    """

    run: str
    name: str
    state: State
    step: int
    steps: int | None
    model: str
    width: int | None
    variant: str | None
    experts: int | None
    parameters: int | None
    active_parameters: int | None
    layout: str | None
    hardware: str | None
    libraries: dict[str, str]
    loss: float | None
    loss_name: str
    grad_norm: float | None
    learning_rate: float | None
    valid_loss: float | None
    valid_bits_per_byte: float | None
    best_valid_loss: float | None
    best_valid_step: int | None
    tokens: int | None
    tokens_per_second: float | None
    step_seconds: float | None
    trained_seconds: float
    left_seconds: float | None
    memory_gib: float | None
    load_imbalance: float | None
    dropped_share: float | None
    skipped_steps: int
    resumes: int
    checkpoint: str | None
    notes: tuple[str, ...]


def headline(run: RunFiles, name: str) -> Headline:
    """Compute the figures of a run."""
    config, lines = run.config, run.lines
    last: Line = lines[-1] if lines else {}
    steps = number(run.keys.get("train", {}), "steps")
    state = _state(run, steps)
    seconds = _median(lines, "step_seconds")
    valid = [(value, line["step"]) for line in lines if (value := number(line, "valid_loss")) is not None]
    best = min(valid, default=None)
    counts = count_parameters(config) if config else None
    samples = number(last, "consumed_samples")
    altup, moe = run.keys.get("altup", {}), run.keys.get("moe", {})
    left = steps is not None and seconds is not None and state == "running"
    return Headline(
        run=str(run.directory),
        name=name,
        state=state,
        step=run.step,
        steps=None if steps is None else int(steps),
        model=_model(config) if config else "unknown: config.yaml cannot be read",
        width=altup.get("width"),
        variant=altup.get("variant"),
        experts=moe.get("num_experts"),
        parameters=counts.total if counts else None,
        active_parameters=counts.active if counts else None,
        layout=_layout(run),
        hardware=_hardware(run),
        libraries=_libraries(run),
        loss=number(last, "loss" if number(last, "lm_loss") is None else "lm_loss"),
        loss_name="loss" if number(last, "lm_loss") is None else "lm loss",
        grad_norm=number(last, "grad_norm"),
        learning_rate=number(last, "learning_rate"),
        valid_loss=valid[-1][0] if valid else None,
        valid_bits_per_byte=next(iter(numbers(lines[::-1], "valid_bits_per_byte")), None),
        best_valid_loss=best and best[0],
        best_valid_step=best and best[1],
        tokens=int(samples * config.model.tokens_per_sample) if config and samples is not None else None,
        tokens_per_second=_median(lines, "tokens_per_second"),
        step_seconds=seconds,
        trained_seconds=sum(numbers(lines, "step_seconds")),
        left_seconds=(steps - run.step) * seconds if left and steps is not None and seconds is not None else None,
        memory_gib=max(numbers(lines, "memory_gib"), default=None),
        load_imbalance=number(last, "expert_load_imbalance"),
        dropped_share=number(last, "dropped_share"),
        skipped_steps=int(number(last, "skipped_steps") or 0),
        resumes=len(resumes(run)),
        checkpoint=run.checkpoint,
        notes=run.notes,
    )


def _state(run: RunFiles, steps: float | None) -> State:
    if run.running:
        return "running"
    if not run.lines:
        return "not started"
    return "finished" if steps is not None and run.step >= steps else "stopped"


def _median(lines: tuple[Line, ...], key: str) -> float | None:
    recent = numbers(lines[-RECENT:], key)
    return statistics.median(recent) if recent else None


def _model(config: RunConfig) -> str:
    m, a, e = config.model, config.altup, config.moe
    layers = f"{m.num_layers} + {m.decoder_layers}" if m.encoder_decoder else str(m.num_layers)
    parts = ["encoder-decoder" if m.encoder_decoder else "decoder", f"{layers} layers", f"d = {m.hidden_size}"]
    parts.append("no AltUp (K = 1)" if a.width == 1 else f"AltUp K = {a.width} ({a.variant})")
    if config.sequence.stride > 1:
        parts.append(f"every {config.sequence.stride} tokens ({config.sequence.method})")
    parts.append(f"{e.num_experts} experts, top {e.top_k}" if e.num_experts else "no experts")
    return ", ".join(parts)


def _layout(run: RunFiles) -> str | None:
    if run.starts and isinstance(run.starts[-1].get("layout"), str):
        return run.starts[-1]["layout"]
    if run.manifest is not None and run.config is not None:
        return describe_layout(run.config.parallel, run.manifest.world_size)
    return None


def _hardware(run: RunFiles) -> str | None:
    if not run.starts:
        return None
    known = run.starts[-1]
    device = known.get("device")
    threads = known.get("threads")
    machine = f"{known.get('processor')}, {known.get('cores')} cores, {threads} thread{'s' * (threads != 1)} a rank"
    return machine if device == "cpu" else f"{device}; {machine}"


def _libraries(run: RunFiles) -> dict[str, str]:
    found: Any = run.starts[-1].get("libraries") if run.starts else None
    if not isinstance(found, dict):
        found = run.manifest.libraries if run.manifest else {}
    return {str(name): str(version) for name, version in found.items()}


def facts(found: Headline) -> Iterator[tuple[str, str]]:
    """(label, text) of each figure that there is, for the page and for stdout."""
    yield "state", state_text(found)
    yield "model", found.model
    if found.parameters is not None:
        same = found.parameters == found.active_parameters
        yield "parameters", count(found.parameters) + ("" if same else f", {count(found.active_parameters)} active")
    yield "layout", found.layout or "not recorded"
    yield "hardware", found.hardware or "not recorded (a run of an older version)"
    if found.loss is not None:
        parts = [f"{found.loss_name} {found.loss:.4f}"]
        parts += [f"gradient norm {digits(found.grad_norm)}"] if found.grad_norm is not None else []
        parts += [f"learning rate {found.learning_rate:.3g}"] if found.learning_rate is not None else []
        yield f"step {found.step}", ", ".join(parts)
    if found.valid_loss is not None:
        bits = found.valid_bits_per_byte
        text = f"loss {found.valid_loss:.4f}" + ("" if bits is None else f", {bits:.4f} bits per byte")
        yield "validation", f"{text}; best {found.best_valid_loss:.4f} at step {found.best_valid_step}"
    if found.step_seconds is not None:
        rate = "" if found.tokens_per_second is None else f"{found.tokens_per_second:,.0f} tokens/s, "
        seen = "" if found.tokens is None else f"; {count(found.tokens)} tokens in {duration(found.trained_seconds)}"
        yield "speed", f"{rate}{digits(1e3 * found.step_seconds)} ms a step{seen}"
    if found.memory_gib is not None:
        yield "memory", f"{found.memory_gib:.2f} GiB at most (rank 0)"
    if found.load_imbalance is not None:
        dropped = "" if found.dropped_share is None else f", {100 * found.dropped_share:.1f} % dropped"
        yield "routing", f"fullest expert {found.load_imbalance:.2f} times the mean{dropped}"
    history = f"{found.resumes} resume(s), {found.skipped_steps} skipped step(s)"
    yield "history", history + (f", newest checkpoint {found.checkpoint}" if found.checkpoint else ", no checkpoint")


def state_text(found: Headline) -> str:
    """The state in a few words, with what goes on from there."""
    of = "" if found.steps is None else f" of {found.steps}"
    if found.state == "running":
        left = "" if found.left_seconds is None else f", about {duration(found.left_seconds)} left"
        return f"running, step {found.step}{of}{left}"
    if found.state == "finished":
        return f"finished, {found.step} steps"
    again = f"altup-moe train {shlex.quote(str(config_file(found.run)))}"
    if found.state == "not started":
        return f"not started: no step is recorded; {again} trains it"
    back = f"goes on from {found.checkpoint}" if found.checkpoint else "begins anew, there is no checkpoint"
    return f"stopped at step {found.step}{of}; {again} {back}"


def lines_of(found: Headline) -> list[str]:
    """The headline on stdout."""
    rows = list(facts(found))
    width = max(len(label) for label, _ in rows)
    return [found.run, *(f"  {label:<{width}}  {text}" for label, text in rows), *(f"  note: {n}" for n in found.notes)]
