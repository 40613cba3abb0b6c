"""All rows that a study will have, as far as can be told before its tries are trained (`forecast`)."""

from __future__ import annotations

from altup_moe.study.spec import Losses, RowSpec, Study

_WORSE = 1e9


def forecast(study: Study, losses: Losses) -> Study:
    """The study with the rows to come, each with the tuned value that lies in the middle of those to be tried.

    Numbers of tokens, sizes and steps do not depend on the value, so they are those that will be trained. There are two
    tries more for a model whose best one turns out to lie at an end.

    Args:
        losses: of the rows so far.
    """
    if study.grow is None:
        return study
    tries: dict[tuple[str, int], list[str]] = {}
    for row in study.rows:
        if row.role == "tuning":
            tries.setdefault(_model(row), []).append(row.name)
    middle = {names[len(names) // 2] for names in tries.values()}

    def pretended(row: RowSpec) -> float | None:
        known = losses(row)
        if known is not None or row.role != "tuning":
            return known
        return -1.0 if row.name in middle else _WORSE

    return study.grow(pretended)


def _model(row: RowSpec) -> tuple[str, int]:
    return row.family, row.config.model.hidden_size
