"""What follows from naming the config.yaml of a run: it trains in the directory that the file names, wherever that is.

A run directory that was moved or copied still names the old place. Training there without a word would begin a second
run, so it is refused until the command line says which directory is meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from altup_moe.config import RunConfig, UserError
from altup_moe.config.run_directory import checkpoints_dir, config_file, metrics_file

RUN_DIR = "log.run_dir"


def run_of_file(file: str | Path) -> Path | None:
    """The run whose own configuration the file is; None for any other file, or where nothing was trained yet."""
    run = Path(file).parent
    trained = checkpoints_dir(run).is_dir() or metrics_file(run).is_file()
    return run if Path(file).name == config_file(run).name and trained else None


def check_run_file(file: str | Path, config: RunConfig, overrides: Sequence[str]) -> None:
    """Check that a run's own file trains in that run, unless the command line names a directory.

    Args:
        file: the configuration file as given. config: the file with the overrides.
        overrides: words of the command line that change keys.

    Raises:
        UserError: the file names another directory: the run was moved or copied, or the path is relative to another
            working directory.
    """
    run = run_of_file(file)
    given = any(word.partition("=")[0] == f"--{RUN_DIR}" for word in overrides)
    if run is None or given or _same(run, config.log.run_dir):
        return
    raise UserError(
        f"{file}: says {RUN_DIR}={config.log.run_dir!r}, but lies in {run}; --{RUN_DIR} {run} goes on here; "
        f"to start another run, copy the file elsewhere"
    )


def new_weights_note(file: str | Path, config: RunConfig) -> str | None:
    """A note for a new run from the file of a run with weights, which starts without them; None for any other."""
    run, target = run_of_file(file), config.log.run_dir
    starts_from = config.checkpoint.initial_load_path or config.checkpoint.branch_from
    if run is None or _same(run, target) or starts_from is not None:
        return None
    from altup_moe.checkpoint.store import latest_checkpoint  # loads numpy, which a page of help does without

    if latest_checkpoint(run) is None or latest_checkpoint(target) is not None:
        return None
    return f"{target}: starts from new weights; --checkpoint.initial_load_path {run} takes those of {run}"


def _same(run: Path, other: str) -> bool:
    return run.resolve() == Path(other).resolve()
