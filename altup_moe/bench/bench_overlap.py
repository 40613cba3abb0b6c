"""`altup-moe bench overlap`: what hides under the experts' all-to-all, and what the wide stream adds to a step.

One process per rank (altup-moe launch torchrun, or netlab for a network of a known rate); the experts are spread over
all of them. For each variant and width one model; its modes are switched between steps, so that all are timed in turn
in one run:

    mixing inline | deferred   x   exchange blocking | async   x   halves off | on

Streams whose outputs are delayed (altup.correct) have no halves: their layers take turns where the others' halves do.
`over max` is the time in which layers compute or wait, over the least that any schedule of the model needs: the larger
of computing and exchanges. Where outputs are delayed around branches, attention and mixing alone can run beside
exchanges, and the rest is one chain with them. What else a step does (loss, optimizer, the reduction of gradients) is
not in it.

A first part times plain steps (medians, ratios); a second records spans of a few further steps of each mode. For the
GPU, where none was at hand, the last lines print what DESIGN's bytes predict.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from altup_moe.altup.variants import Correct
from altup_moe.bench.options import OverlapBench, StepBench
from altup_moe.bench.recorded_steps import recorded_steps, report_of_all
from altup_moe.bench.stepper import Stepper, milliseconds_text, run_config
from altup_moe.config import OverlapConfig, ParallelConfig, RunConfig
from altup_moe.config.checks import check_config
from altup_moe.config.model_schema import Width
from altup_moe.parallel.topology import Topology, topology
from altup_moe.timeline.chrome import write_trace
from altup_moe.timeline.overlap import OverlapReport, median_overlap, overlap_by_step
from altup_moe.timeline.picture import write_picture
from altup_moe.train.profile import gather

MODES = [
    OverlapConfig(mixing, exchange, halves)
    for halves in (False, True)
    for exchange in ("blocking", "async")
    for mixing in ("inline", "deferred")
]


@dataclass(frozen=True)
class Wide:
    """A stream that is timed."""

    width: Width
    variant: str
    correct: Correct = "next"

    @property
    def label(self) -> str:
        """How a table calls its stream."""
        if self.correct == "next":
            return self.variant
        return f"{'plain' if self.width == 1 else self.variant}, {self.correct}"


def streams(bench: OverlapBench) -> list[Wide]:
    """Those of a benchmark. A stream of one block is the same of every variant; others are over next's."""
    first, *others = bench.variants
    plain = dict.fromkeys(("next", *bench.correct))
    wider = [
        Wide(width, variant, correct)
        for variant in (first, *others)
        for width in bench.widths
        for correct in bench.correct
        if width > 1
    ]
    return [Wide(width, first, correct) for width in bench.widths if width == 1 for correct in plain] + wider


@dataclass(frozen=True)
class ModeResult:
    """Result of one stream in one mode: seconds of a step, their ratio to width 1 in that mode, the overlap report."""

    width: int
    variant: str
    mode: OverlapConfig
    median_seconds: float
    min_seconds: float
    max_seconds: float
    ratio: float | None
    report: OverlapReport
    attention_alone: bool = False
    """Whether attention and mixing alone can run beside an exchange: outputs delayed around branches. There each
    layer's experts read what the layer's before wrote, so that experts and exchanges are one chain."""

    @property
    def mixing_hidden(self) -> float | None:
        """Share of the mixing time during which an exchange was in flight."""
        return self.report.mixing_hidden_ms / self.report.mixing_ms if self.report.mixing_ms else None

    @property
    def exchange_hidden(self) -> float:
        """Share of the exchange's time during which no rank waited for it."""
        return self.report.hidden_ms / self.report.exchange_ms if self.report.exchange_ms else 0.0

    @property
    def beside_ms(self) -> float:
        """Computing that can run beside an exchange, in any schedule of the model."""
        return self.report.attention_ms + self.report.mixing_ms if self.attention_alone else self.report.compute_ms

    @property
    def over_max(self) -> float:
        """Computing and waiting for exchanges, over the least that any schedule of the model needs: computing, or the
        exchanges and what cannot run beside them."""
        chain_ms = self.report.exchange_ms + self.report.compute_ms - self.beside_ms
        return (self.report.compute_ms + self.report.exposed_ms) / max(self.report.compute_ms, chain_ms)

    @property
    def bound(self) -> float:
        """Largest share that any schedule could hide: what can run beside bounds it."""
        exchange_ms = self.report.exchange_ms
        return min(self.beside_ms, exchange_ms) / exchange_ms if exchange_ms else 0.0


def bench_config(bench: OverlapBench, wide: Wide, world_size: int) -> RunConfig:
    """Configuration of a model whose experts lie on all ranks."""
    shape = {name: getattr(bench, name) for name in ("hidden_size", "num_layers", "seq_length", "micro_batch_size")}
    config = run_config(StepBench(moe_experts=bench.moe_experts, **shape), wide.width)
    config = replace(config, altup=replace(config.altup, variant=wide.variant, level=bench.level, correct=wide.correct))
    # A small vocabulary keeps the gradients' reduction short, which is not measured.
    model = replace(config.model, vocab_size=1024)
    train = replace(config.train, global_batch_size=bench.micro_batch_size * max(1, world_size // bench.tensor))
    return replace(config, model=model, train=train, parallel=_parallel(bench, world_size))


def _parallel(bench: OverlapBench, world_size: int) -> ParallelConfig:
    """Experts over all ranks."""
    return ParallelConfig(tensor=bench.tensor, expert=world_size)


def modes(wide: Wide, only_async: bool = False) -> list[OverlapConfig]:
    """The modes that differ for a stream. One of a single block has no mixing, a delayed one no halves."""
    found = [mode for mode in MODES if wide.width > 1 or mode.mixing == "deferred"]
    found = [mode for mode in found if wide.correct == "next" or not mode.microbatch_halves]
    return [mode for mode in found if (mode.exchange, mode.microbatch_halves) == ("async", False) or not only_async]


def _set_mode(stepper: Stepper, wide: Wide, mode: OverlapConfig) -> None:
    # Layers read these attributes in every forward pass.
    for module in (m for chunk in stepper.chunks for m in chunk.modules()):
        config: Any = getattr(module, "config", None)
        if hasattr(config, "overlap_mixing"):
            config.overlap_mixing = mode.mixing == "deferred"
            config.overlap_exchange = mode.exchange == "async"
            config.overlap_two_batch = mode.microbatch_halves
            config.overlap_two_steps = wide.correct == "delayed" and mode == OverlapConfig("deferred", "async")


def _turns(bench: OverlapBench, steppers: dict[Wide, Stepper]) -> Iterator[tuple[Wide, OverlapConfig, Stepper]]:
    for wide, stepper in steppers.items():
        for mode in modes(wide, bench.only_async):
            _set_mode(stepper, wide, mode)
            dist.barrier()
            yield wide, mode, stepper


def _measure(bench: OverlapBench, topo: Topology) -> list[ModeResult] | None:
    torch.set_num_threads(bench.threads)
    steppers = {wide: Stepper(bench_config(bench, wide, topo.world_size), topo) for wide in streams(bench)}
    seconds: dict[tuple[Wide, OverlapConfig], list[float]] = {}
    for repeat in range(bench.repeats + 1):
        for wide, mode, stepper in _turns(bench, steppers):
            taken = stepper.step()
            if repeat:
                seconds.setdefault((wide, mode), []).append(taken)
    reports = {}
    for wide, mode, stepper in _turns(bench, steppers):
        found = _recorded(bench, wide, mode, stepper)
        if found:
            reports[wide, mode] = found
    if topo.rank != 0:
        return None
    medians = {key: statistics.median(s) for key, s in seconds.items()}

    def plain(mode: OverlapConfig) -> float | None:
        return medians.get((Wide(1, bench.variants[0]), replace(mode, mixing="deferred")))

    return [
        ModeResult(
            wide.width, wide.label, mode, medians[wide, mode], min(s), max(s),
            medians[wide, mode] / base if (base := plain(mode)) else None, reports[wide, mode],
            wide.correct == "delayed" and bench.level == "branch",
        )
        for (wide, mode), s in seconds.items()
    ]  # fmt: skip


def _recorded(bench: OverlapBench, wide: Wide, mode: OverlapConfig, stepper: Stepper) -> OverlapReport | None:
    recording = recorded_steps(stepper, bench.recorded)
    halves, stream = "-halves" * mode.microbatch_halves, wide.label.replace(", ", "-")
    name = f"{stream}-k{wide.width}-{mode.mixing}-{mode.exchange}{halves}"
    return _together(bench, name, recording, stepper.topology)


def _together(bench: OverlapBench, name: str, recording: Any, topo: Topology) -> OverlapReport | None:
    """Collect all ranks' spans on rank 0 and report them: through files if `out` is set, else by an all-gather."""
    if bench.out:
        directory = Path(bench.out) / name
        recordings = gather(recording, directory, topo)
        if recordings is None:
            return None
        write_trace(directory / "trace.json", recordings)
        write_picture(directory / "step.png", recordings, title=name)
        return median_overlap([report for each in recordings for report in overlap_by_step(each)])
    return report_of_all(recording, topo)


def bench_overlap(bench: OverlapBench, world_size: int) -> int:
    """Measure and print a table, or one JSON object, on rank 0."""
    for wide in streams(bench):
        check_config(bench_config(bench, wide, world_size), world_size)
    with topology(_parallel(bench, world_size)) as topo:
        results = _measure(bench, topo)
    if results is None:
        return 0
    if bench.json:
        print(json.dumps({"bench": vars(bench), "ranks": world_size, "torch": torch.__version__,
                          "modes": [_as_dict(r) for r in results]}))  # fmt: skip
    else:
        print(_table(bench, world_size, results))
    return 0


def _as_dict(r: ModeResult) -> dict[str, Any]:
    shares = {"mixing_hidden": r.mixing_hidden, "exchange_hidden": r.exchange_hidden, "bound": r.bound}
    shares["over_max"] = r.over_max
    return {**asdict(r), **shares}


def _table(bench: OverlapBench, ranks: int, results: list[ModeResult]) -> str:
    ranks_text = f"{ranks} rank(s)" + (f", {bench.tensor} of them tensor ranks" if bench.tensor > 1 else "")
    lines = [
        f"hidden {bench.hidden_size}, {bench.num_layers} layers, {bench.moe_experts} experts top-2 over "
        f"{ranks_text}, sequence {bench.seq_length}, micro-batch {bench.micro_batch_size} a rank, fp32, "
        f"{bench.threads} thread(s) a rank; streams around {'branches' if bench.level == 'branch' else 'layers'}",
        f"median of {bench.repeats} interleaved steps; spans: median of {bench.recorded} further steps of all ranks",
        "",
        "  K  variant                   mixing    exchange  halves |  step ms (min .. max)          over K=1 | "
        "exchange ms  hidden  (at most)  over max | "
        "mix ms  hidden  axpy ms",
    ]
    for r in results:
        m, o = r.mode, r.report
        taken = milliseconds_text(r.median_seconds, r.min_seconds, r.max_seconds)
        ratio = f"{r.ratio:.3f}" if r.ratio else "-"
        mixing = "-" if r.width == 1 else m.mixing
        variant = "-" if r.width == 1 and r.variant in bench.variants else r.variant
        hidden = f"{100 * r.mixing_hidden:5.1f} %" if r.mixing_hidden is not None else "      -"
        lines.append(
            f"  {r.width}  {variant:<25} {mixing:<9} {m.exchange:<9} {'on' if m.microbatch_halves else 'off':<6} | "
            f"{taken:<30}{ratio:>8} | "
            f"{o.exchange_ms:11.1f} {100 * r.exchange_hidden:5.1f} %  {100 * r.bound:6.1f} %   {r.over_max:7.3f}  | "
            f"{o.mixing_ms:6.2f} {hidden} {o.axpy_ms:8.2f}"
        )
    return "\n".join([*lines, "", *(gpu_model() if bench.variants == ("altup",) and bench.level == "layer" else ())])


HBM_BYTES_PER_SECOND = 3.35e12
"""H100 SXM's memory bandwidth (NVIDIA's data sheet)."""
REACHED = 0.9
"""Share of the bandwidth that a streaming kernel reaches (an assumption)."""


def gpu_nanoseconds(blocks: int, width: int = 4096, element: int = 2) -> float:
    """Time to move `blocks` blocks of `width` elements, ns a token: bytes over the reached bandwidth."""
    return blocks * width * element / (HBM_BYTES_PER_SECOND * REACHED) * 1e9


def gpu_model() -> list[str]:
    """Lines that predict an H100's times from bytes; they are not measured."""
    off_path = " / ".join(f"{gpu_nanoseconds(2 * k + 2):.0f}" for k in (2, 4))
    return [
        "model, not measured: H100, d=4096, bf16: a pass moves 2K+2 blocks a token and layer, off the path "
        f"{off_path} ns (K=2/4); on the path 1 block, {gpu_nanoseconds(1):.1f} ns",
    ]
