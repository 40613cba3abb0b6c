"""Read the results of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

    from altup_moe.study.records import StudyRow

ROWS = "rows.jsonl"
_RECORDS = ("hardware", "quality", "latency", "train_step", "prefill", "decode", "experts")
"""Fields of a row that are records: where one is missing, its columns are."""


def read_study(path: str | Path) -> list[StudyRow]:
    """The finished rows of a study, in the order in which they were finished. Needs no torch.

    Args:
        path: the study's directory, or its rows.jsonl.

    Returns:
        Records: one configuration with one seed each. Losses in nats per token, times in milliseconds.

    Raises:
        UserError: there is no such file, or a line of it is no row (its number).

    Examples:
        >>> rows = read_study("configs/study/results/paper_small")  # doctest: +SKIP
        >>> rows[0].quality.valid_loss  # doctest: +SKIP
        5.568
    """
    from altup_moe.study.records import read_rows

    file = Path(path)
    return read_rows(file / ROWS if file.is_dir() else file)


def study_frame(study: str | Path | Sequence[StudyRow]) -> pandas.DataFrame:
    """The rows of a study as a pandas table, one line a row.

    Columns are the fields of `StudyRow`, those of records inside with a dot: ``quality.valid_loss``,
    ``latency.train_step.median``, ``overrides.altup.width``. Loss curves and loads of single experts, which are lists,
    stay in the records.

    Args:
        study: as in `read_study`, or rows that it returned.

    Raises:
        UserError: as `read_study`.

    Examples:
        >>> frame = study_frame("configs/study/results/paper_small")  # doctest: +SKIP
        >>> frame.groupby("name")["quality.valid_loss"].mean()  # doctest: +SKIP
    """
    import pandas

    rows = read_study(study) if isinstance(study, str | Path) else study
    return pandas.DataFrame([_flat(asdict(row)) for row in rows])


def _flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        elif not isinstance(value, list) and not (value is None and key in _RECORDS):
            found[prefix + key] = value
    return found
