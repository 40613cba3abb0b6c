"""The figures of `altup-moe bench mixing`, and whether they meet the goals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from altup_moe.bench.dynamic_contenders import STEPS, WHOLE
from altup_moe.bench.mixing_rivals import GEMMA, LITERAL

OUR_KERNELS = ("torch", "compile", "triton")
GOAL_WIDTH, GOAL_EXPONENT = 4, 21


@dataclass(frozen=True)
class MixingTiming:
    """Times of one contender in one setting: medians in ms, and their ratios to the copy bound of our pass."""

    width: int
    exponent: int
    dtype: str
    threads: int
    name: str
    forward_ms: float
    both_ms: float
    forward_ratio: float
    both_ratio: float
    device: str = "cpu"


@dataclass(frozen=True)
class Goal:
    """A goal, the measured figure, and whether it is met."""

    text: str
    figure: float
    met: bool


def goals(rows: list[MixingTiming]) -> list[Goal]:
    """Judge the goals at K = 4 and 2^21 numbers a block, for the fastest of our kernels in each setting."""
    found = []
    for where, here, best in _best_at(rows, ""):
        found.append(_at_most(f"forward <= 1.5 x copy {where}", best.forward_ratio, 1.5))
        found.append(_at_most(f"forward and backward <= 2.5 x copy {where}", best.both_ratio, 2.5))
        found += _faster(best, here, {GEMMA: 4.0, LITERAL: 3.0}, where)
    return found


def dynamic_goals(rows: list[MixingTiming]) -> list[Goal]:
    """The same for passes with a matrix for each token, and for whole steps beside others' whole steps."""
    found = []
    for where, _, best in _best_at(rows, ""):
        found.append(_at_most(f"forward <= 1.6 x copy {where}", best.forward_ratio, 1.6))
        found.append(_at_most(f"forward and backward <= 2.8 x copy {where}", best.both_ratio, 2.8))
    for where, here, best in _best_at(rows, WHOLE):
        found += _faster(best, here, dict.fromkeys(STEPS, 3.0), where)
    return found


def _best_at(rows: list[MixingTiming], what: str) -> Iterator[tuple[str, dict[str, MixingTiming], MixingTiming]]:
    """Yield (where, all of that setting by name, the fastest of ours) of each type and number of threads, or GPU."""
    for dtype, threads, device in dict.fromkeys((row.dtype, row.threads, row.device) for row in rows):
        here = _at(rows, dtype, threads, device)
        ours = [here[name + what] for name in OUR_KERNELS if name + what in here]
        if ours:
            best = min(ours, key=lambda row: row.both_ms)
            place = f"{threads} thread{'s' * (threads > 1)}" if device == "cpu" else device
            yield f"({best.name}, {dtype}, {place})", here, best


def _faster(best: MixingTiming, here: dict[str, MixingTiming], factors: dict[str, float], where: str) -> Iterator[Goal]:
    for rival, factor in factors.items():
        if rival in here:
            forward, both = here[rival].forward_ms / best.forward_ms, here[rival].both_ms / best.both_ms
            for part, faster in (("forward", forward), ("forward and backward", both)):
                yield Goal(f"{part} >= {factor:g} x faster than {rival} {where}", faster, faster >= factor)


def _at(rows: list[MixingTiming], dtype: str, threads: int, device: str) -> dict[str, MixingTiming]:
    setting = (GOAL_WIDTH, GOAL_EXPONENT, dtype, threads, device)
    return {r.name: r for r in rows if (r.width, r.exponent, r.dtype, r.threads, r.device) == setting}


def _at_most(text: str, figure: float, limit: float) -> Goal:
    return Goal(text, figure, figure <= limit)
