"""All tasks by name, and loading of their examples from a package, from local files or from the hub.

Each module of a benchmark has a table of its tasks called ``TASKS``; ``TASKS`` here joins them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from altup_moe.config.errors import DataError, UserError
from altup_moe.data.tasks import glue, sentiment, squad, superglue
from altup_moe.data.tasks.records import Example, Hub, Split, Task, TaskRow
from altup_moe.data.tasks.rows import RowError

TASKS: dict[str, Task] = {task.name: task for part in (squad, superglue, glue, sentiment) for task in part.TASKS}
ROW_FILE_SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class TaskData:
    """A split's examples in the order of its rows, and how many of the rows have no label and so no example."""

    examples: list[Example]
    rows: int
    unlabelled: int


def load_examples(task: Task, split: Split, files: Mapping[str, Path], cache_dir: Path) -> list[Example]:
    """The examples of `load_task`."""
    return load_task(task, split, files, cache_dir).examples


def load_task(task: Task, split: Split, files: Mapping[str, Path], cache_dir: Path) -> TaskData:
    """Load a split.

    Args:
        files: task -> directory of local data (`data.task_files`).
        cache_dir: directory for downloads.

    Raises:
        DataError: a file is damaged, lacks a column or has a label that is not known (with file, row and value), or the
            split has no examples.
        UserError: the data can be loaded neither from a package nor from the hub.
    """
    if task.name in files:
        rows, source = _local(files[task.name], split)
    elif isinstance(task.source, Hub):
        rows, source = _hub(task.source, split, cache_dir), f"{task.source.path} {task.source.name or ''}".strip()
    else:
        rows, source = task.source(cache_dir, split), task.name
    examples: list[Example] = []
    number = unlabelled = 0
    for number, row in enumerate(rows, 1):
        if missing := [column for column in task.columns if column not in row]:
            raise DataError(source, f"row {number - 1} has no {missing[0]}, which {task.name} reads")
        try:
            made = task.examples(row)
        except RowError as error:
            raise DataError(source, f"row {number - 1} is no row of {task.name}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise DataError(source, f"row {number - 1} is no row of {task.name}: {error!r}") from error
        examples += made
        unlabelled += not made
    if not examples:
        without = f": none of its {number:,} rows has a label" if number else ""
        raise DataError(source, f"has no examples of {task.name} for {split}{without}")
    return TaskData(examples, number, unlabelled)


def _local(directory: Path, split: Split) -> tuple[Iterable[TaskRow], str]:
    found = [path for suffix in ROW_FILE_SUFFIXES if (path := directory / f"{split}{suffix}").is_file()]
    if not found:
        raise DataError(
            directory, f"holds no {split} file ({', '.join(split + suffix for suffix in ROW_FILE_SUFFIXES)})"
        )
    if len(found) > 1:
        raise DataError(directory, f"holds {' and '.join(path.name for path in found)}: which of them is {split}?")
    return local_rows(found[0]), str(found[0])


def local_rows(file: Path) -> list[TaskRow]:
    """Rows of a jsonl, json (a list, or SQuAD's nested format) or parquet file.

    Raises:
        DataError: it cannot be read (with the byte offset where there is one).
    """
    if file.suffix == ".parquet":
        from pyarrow import lib, parquet  # type: ignore[import-untyped]

        try:
            rows: list[TaskRow] = parquet.read_table(file).to_pylist()
        except (lib.ArrowException, OSError) as error:
            raise DataError(file, f"is no parquet file ({error})") from error
        return rows
    at, parts = 0, []
    lines = file.read_bytes().splitlines(keepends=True) if file.suffix == ".jsonl" else [file.read_bytes()]
    for line in lines:
        try:
            if line.strip():
                parts.append(json.loads(line))
        except UnicodeDecodeError as error:
            raise DataError(file, f"is not UTF-8 ({error.reason})", at + error.start) from error
        except json.JSONDecodeError as error:
            offset = at + len(line.decode()[: error.pos].encode())
            raise DataError(file, f"is not JSON ({error.msg})", offset) from error
        at += len(line)
    content: Any = parts if file.suffix == ".jsonl" else parts[0] if parts else []
    if isinstance(content, dict) and "data" in content:
        try:
            content = list(squad.nested_rows(content))
        except (KeyError, TypeError) as error:
            raise DataError(file, f"is not in SQuAD's format: {error!r}") from error
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise DataError(file, "holds no list of rows")
    return content


def _hub(source: Hub, split: Split, cache_dir: Path) -> Iterable[TaskRow]:
    import datasets  # a second of import

    datasets.disable_progress_bars()
    try:
        rows: Iterable[TaskRow] = datasets.load_dataset(
            source.path,
            source.name,
            split=source.validation if split == "validation" else split,
            revision=source.revision,
            cache_dir=str(cache_dir / "hub"),
        )
    except Exception as error:  # datasets and the hub raise many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = "data.task_files takes local files of the same columns"
        raise UserError(f"{source.path}: cannot be had from the hub ({first}); {remedy}") from error
    return rows
