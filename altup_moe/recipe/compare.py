"""Compare the answers of two ways of training, question by question, with standard errors.

Shape suffixes: S seeds, Q questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

AnswerMetric = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]
ERRORS = 2.0
"""Number of standard errors that a difference must exceed to count."""


@dataclass(frozen=True)
class PairedDifference:
    """Difference of the fine-tuned runs' metric to another's, in percent.

    Args:
        mean: over seeds and questions.
        by_seed: of each seed alone.
        error_questions: standard error over questions, each averaged over the seeds first (the questions are the same).
        error_seeds: standard error over seeds; None of one seed.
    """

    mean: float
    by_seed: tuple[float, ...]
    error_questions: float
    error_seeds: float | None

    @property
    def better(self) -> bool:
        """Whether every seed is above 0, and the mean above `ERRORS` times the larger standard error."""
        error = max(self.error_questions, self.error_seeds or 0.0)
        return min(self.by_seed) > 0 and self.mean > ERRORS * error


@dataclass(frozen=True)
class Figures:
    """One metric in percent, by seed. `majority`: of always giving the most frequent answer."""

    tuned: tuple[float, ...]
    control: tuple[float, ...]
    majority: float
    over_control: PairedDifference
    over_majority: PairedDifference


@dataclass(frozen=True)
class Results:
    """Exact match and F1 over the same questions."""

    task: str
    seeds: tuple[int, ...]
    questions: int
    majority_answer: str
    em: Figures
    f1: Figures

    def to_dict(self) -> dict[str, Any]:
        """The results as JSON, with the verdicts."""
        content = asdict(self)
        for name in ("em", "f1"):
            for other in ("over_control", "over_majority"):
                content[name][other]["better"] = getattr(getattr(self, name), other).better
        return content


def results(
    task: str,
    seeds: Sequence[int],
    metric: AnswerMetric,
    references: Sequence[Sequence[str]],
    tuned: Sequence[Sequence[str]],
    control: Sequence[Sequence[str]],
) -> Results:
    """Score answers.

    Args:
        metric: em and f1 of some questions, in percent, each the mean over them.
        references: the accepted answers of each question, the usual one first.
        tuned, control: answers by seed and question.
    """
    (usual, _), *_ = Counter(accepted[0] for accepted in references).most_common(1)
    scored = {
        name: [by_question(metric, answers, references) for answers in runs]
        for name, runs in (("tuned", tuned), ("control", control), ("majority", [[usual] * len(references)]))
    }
    em, f1 = (
        figures(*(np.stack([one[key] for one in scored[name]]) for name in ("tuned", "control", "majority")))
        for key in ("em", "f1")
    )
    return Results(task, tuple(seeds), len(references), usual, em, f1)


def by_question(
    metric: AnswerMetric, answers: Sequence[str], references: Sequence[Sequence[str]]
) -> dict[str, np.ndarray]:
    """Metrics of each question, by name, [Q]."""
    rows = [metric([answer], [accepted]) for answer, accepted in zip(answers, references, strict=True)]
    return {name: np.array([row[name] for row in rows]) for name in ("em", "f1")}


def figures(tuned_SQ: np.ndarray, control_SQ: np.ndarray, majority_1Q: np.ndarray) -> Figures:
    """Means and differences of one metric."""
    return Figures(
        _means(tuned_SQ),
        _means(control_SQ),
        float(majority_1Q.mean()),
        paired_difference(tuned_SQ - control_SQ),
        paired_difference(tuned_SQ - majority_1Q),
    )


def paired_difference(paired_SQ: np.ndarray) -> PairedDifference:
    """Mean of paired differences, and its two standard errors."""
    by_seed, by_question_Q = paired_SQ.mean(axis=1), paired_SQ.mean(axis=0)
    return PairedDifference(float(paired_SQ.mean()), _means(paired_SQ), _error(by_question_Q) or 0.0, _error(by_seed))


def results_table(found: Results) -> str:
    """The results as a table in plain text."""
    lines = [
        f"{found.task}: {found.questions:,} held-out questions, {len(found.seeds)} seed(s), percent",
        f"  {'':<10}{'F1':^38}  {'exact match':^38}",
        f"  {'seed':<10}" + 2 * f"{'fine-tuned':>12}{'un-pretrained':>15}{'difference':>12} ",
    ]
    both = (found.f1, found.em)
    for number, seed in enumerate(found.seeds):
        cells = [_cells(f.tuned[number], f.control[number], f.over_control.by_seed[number]) for f in both]
        lines.append(f"  {seed:<10}" + " ".join(cells))
    means = [_cells(float(np.mean(f.tuned)), float(np.mean(f.control)), f.over_control.mean) for f in both]
    lines.append(f"  {'mean':<10}" + " ".join(means))
    spreads = [_cells(_spread(f.tuned), _spread(f.control), _spread(f.over_control.by_seed), sign="") for f in both]
    lines.append(f"  {'max - min':<10}" + " ".join(spreads))
    lines.append(f"  {'majority':<10}{found.f1.majority:>12.2f}{'':>28}{found.em.majority:>12.2f}")
    lines[-1] += f"   always {found.majority_answer!r}"
    lines.append(_verdict("un-pretrained", found.f1.over_control))
    lines.append(_verdict("the majority", found.f1.over_majority))
    return "\n".join(line.rstrip() for line in lines)


def loss_line(losses: Mapping[str, Sequence[float]]) -> str:
    """One line with the held-out losses of both arms, by seed; they differ even where no answer does."""
    tuned, control = (" ".join(f"{loss:.3f}" for loss in losses[arm]) for arm in ("finetuned", "control"))
    change = float(np.mean(losses["finetuned"]) - np.mean(losses["control"]))
    return f"loss of held-out answers, nats a token: fine-tuned {tuned} | un-pretrained {control} | mean {change:+.3f}"


def _verdict(than: str, d: PairedDifference) -> str:
    seeds = "" if d.error_seeds is None else f", {d.error_seeds:.2f} over seeds"
    word = "yes" if d.better else "no"
    return f"better than {than}: {word}, F1 {d.mean:+.2f}, standard error {d.error_questions:.2f} over questions{seeds}"


def _cells(tuned: float, control: float, change: float, sign: str = "+") -> str:
    return f"{tuned:>12.2f}{control:>15.2f}{change:>{sign}12.2f}"


def _spread(values: Sequence[float]) -> float:
    return max(values) - min(values)


def _means(values_SQ: np.ndarray) -> tuple[float, ...]:
    return tuple(float(mean) for mean in values_SQ.mean(axis=1))


def _error(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
