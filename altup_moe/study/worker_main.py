"""Entry of a study's workers: `python -m altup_moe.study.worker_main train|prepare|steps|texts ...`; not for users."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from altup_moe.config import UserError
from altup_moe.config.exit_codes import EXIT_FAILED, EXIT_USER_ERROR
from altup_moe.config.library_warnings import LibraryWarnings
from altup_moe.parallel.parent_death import die_with_parent
from altup_moe.study.spec import MeasureSpec
from altup_moe.study.study_directory import RowDirectory


def train_arguments(root: Path, seconds: float | None) -> list[str]:
    """Arguments to train the row in a directory."""
    return ["train", json.dumps({"seconds": seconds}), str(root)]


def measure_arguments(kind: str, number: int, measure: MeasureSpec, roots: Sequence[Path]) -> list[str]:
    """Arguments to measure a round of the rows in these directories."""
    return [kind, json.dumps({"number": number, "measure": vars(measure)}), *map(str, roots)]


def prepare_arguments(roots: Sequence[Path]) -> list[str]:
    """Arguments to prepare the data of the rows in these directories."""
    return ["prepare", "{}", *map(str, roots)]


def _work(kind: str, options: dict, roots: list[Path]) -> Callable[[], int]:
    if kind == "prepare":
        from altup_moe.study.prepared import prepare_rows

        return lambda: prepare_rows(roots)
    if kind == "train":
        from altup_moe.study.trained import train_row

        return lambda: train_row(RowDirectory(roots[0]), options["seconds"])
    from altup_moe.study import latency

    work = latency.measure_steps if kind == "steps" else latency.measure_texts
    return lambda: work(roots, options["number"], MeasureSpec(**options["measure"]))


def main(argv: Sequence[str]) -> int:
    """Do what the arguments say. If they name one row, a failure is written into its directory."""
    die_with_parent(os.getppid())
    kind, options, roots = argv[0], json.loads(argv[1]), [Path(root) for root in argv[2:]]
    try:
        with LibraryWarnings():
            return _work(kind, options, roots)()
    except UserError as error:
        _note(roots, str(error))
        print(f"error: {' '.join(str(error).splitlines())}", flush=True)
        return EXIT_USER_ERROR
    except Exception as error:
        _note(roots, f"{type(error).__name__}: {error}")
        traceback.print_exc()
        return EXIT_FAILED


def _note(roots: list[Path], problem: str) -> None:
    """Write why a rank failed. Only the first rank writes: the others fail because of it."""
    if len(roots) == 1:
        with suppress(FileExistsError), open(RowDirectory(roots[0]).failure, "x", encoding="utf-8") as file:
            file.write(" ".join(problem.split())[:500] + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
