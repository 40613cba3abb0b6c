"""A study from start to end: train every row, then measure them alone, and write their lines.

It can be stopped or killed at any moment: the same command goes on. Runs resume from their checkpoints, and what is
written is not done again.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType

from altup_moe.config import UserError
from altup_moe.config.exit_codes import EXIT_STOPPED
from altup_moe.study import worker_main
from altup_moe.study.collect_row import cores, done_row, failed_row
from altup_moe.study.folder import Folder, Kind, read_json
from altup_moe.study.live_table import Board
from altup_moe.study.pool import startable
from altup_moe.study.progress import Snapshot, snapshot
from altup_moe.study.records import Row
from altup_moe.study.spec import RowSpec, Study
from altup_moe.study.worker_processes import POLL_SECONDS, Child, check_launchers, reason, start, stop


class Stopped(Exception):
    """A signal came; children have been stopped."""


@dataclass
class Running:
    """A study under way. Mutable: rows finish."""

    study: Study
    folder: Folder
    board: Board
    jobs: int
    finished: dict[str, Row]
    signals: list[int]
    training: dict[str, Child] = field(default_factory=dict)

    @property
    def pending(self) -> list[RowSpec]:
        """Rows without a line."""
        return [row for row in self.study.rows if row.config_hash not in self.finished]

    def hurry(self) -> bool:
        """Whether a second signal came: whoever repeats it does not want to wait for saves."""
        return len(self.signals) > 1

    def snapshot(self) -> Snapshot:
        """How far it is."""
        lanes = min(cores(), self.jobs * max(row.cores for row in self.study.rows))
        return snapshot(self.study, self.folder, self.finished, set(self.training), lanes)

    def end(self, row: RowSpec, line: Row) -> None:
        """A row is finished, well or not."""
        self.folder.add(line)
        self.finished[row.config_hash] = line

    def fail(self, row: RowSpec, why: str) -> None:
        """Keep a row that failed, with its reason."""
        self.end(row, failed_row(self.study, row, self.folder, why))
        self.board.say(f"failed {row.name} seed {row.seed}: {why}")


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Note SIGTERM, SIGINT and SIGHUP inside, to stop between two looks at the children; ignored ones stay ignored."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    previous = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            previous[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_study(study: Study, root: Path, jobs: int | None = None, retry_failed: bool = False) -> int:
    """Run a study in a directory, or go on with it.

    Args:
        jobs: rows trained at a time, at most; never more than the cores hold. None is as many as they hold.
        retry_failed: begin rows anew that failed before.
    Returns:
        0 when every row is done, 1 when some failed, `EXIT_STOPPED` when a signal stopped it.
    Raises:
        UserError: another study runs in the directory; what rows need is missing; data that cannot be had.
    """
    folder = Folder(root)
    check_launchers(study.rows)
    with folder.locked(), noted_signals() as signals, Board(study.name) as board:
        finished = folder.finished()
        if retry_failed:
            folder.forget([row for row in study.rows if _failed(finished, row)])
            finished = folder.finished()
        folder.lay_out(study)
        running = Running(study, folder, board, jobs or cores(), finished, signals)
        try:
            if running.pending:
                board.say(f"{study.name}: {running.snapshot().summary()}")
                _prepare(running)
                _train(running)
                _measure(running)
        except Stopped:
            board.say(f"stopped by a signal: {running.snapshot().summary()}; the same command goes on")
            return EXIT_STOPPED
        end = running.snapshot()
        board.show(end)
        board.say(f"{study.name}: {end.summary()}; {folder.root / 'rows.jsonl'}")
        return 1 if end.count("failed") else 0


def _failed(finished: dict[str, Row], row: RowSpec) -> bool:
    line = finished.get(row.config_hash)
    return line is not None and line.status == "failed"


def _wait(running: Running, one: Child) -> int:
    """The exit code of a process that runs alone."""
    while one.code is None:
        if running.signals:
            stop([one], running.hurry)
            raise Stopped
        if running.board.due:
            running.board.show(running.snapshot())
        time.sleep(POLL_SECONDS)
    return one.code


def _alone(row: RowSpec) -> RowSpec:
    return replace(row, ranks=1, launcher="torchrun", rate=None)


def _prepare(running: Running) -> None:
    """Tokens of rows that have not begun, once for each kind: rows that start together do not race for them."""
    different = {
        json.dumps([row.config.to_dict()["data"], row.config.model.vocab_size, row.config.model.arch]): row
        for row in running.pending
        if not running.folder.place(row).run_dir.exists()
    }
    if not different:
        return
    log = running.folder.root / "prepare.txt"
    log.unlink(missing_ok=True)
    rows = list(different.values())
    words = worker_main.prepare_words([running.folder.place(row).root for row in rows])
    code = _wait(running, start(words, _alone(rows[0]), log))
    if code:
        last = next((line for line in reversed(log.read_text(errors="replace").splitlines()) if line.strip()), "")
        raise UserError(last.removeprefix("error: ") or f"preparing the data ended with exit code {code}")


# ------------------------------------------------------------------------------------------------------------ training


def _train(running: Running) -> None:
    """Train all rows that are not, as many at a time as fit."""
    waiting = []
    for row in running.pending:
        if running.folder.place(row).trained.exists():
            _settle(running, row)
        else:
            waiting.append(row)
    try:
        while waiting or running.training:
            if running.signals:
                raise Stopped
            under_way = {row.key: row for row in running.study.rows if row.key in running.training}
            for key, row in under_way.items():
                code = running.training[key].code
                if code is not None:
                    del running.training[key]
                    if _settle(running, row, code):
                        _say_trained(running, row)
            busy = [row.cores for key, row in under_way.items() if key in running.training]
            chosen = startable([(row, row.cores) for row in waiting], busy, running.jobs, cores())
            if chosen is not None:
                waiting.remove(chosen)
                _start_training(running, chosen)
                continue
            if running.board.due:
                running.board.show(running.snapshot())
            time.sleep(POLL_SECONDS)
    finally:
        stop(list(running.training.values()), running.hurry)


def _start_training(running: Running, row: RowSpec) -> None:
    place = running.folder.place(row)
    place.failure.unlink(missing_ok=True)
    words = worker_main.train_words(place.root, row.budget.seconds)
    running.training[row.key] = start(words, row, place.log)


def _settle(running: Running, row: RowSpec, code: int = 0) -> bool:
    """A row's training has ended. Whether it is trained; if not, it failed."""
    place = running.folder.place(row)
    trained = read_json(place.trained)
    if trained is not None and not trained["problem"]:
        return True
    running.fail(row, trained["problem"] if trained else reason(code, place, place.log))
    return False


def _say_trained(running: Running, row: RowSpec) -> None:
    place = running.folder.place(row)
    lines, trained = place.metrics(), read_json(place.trained) or {}
    figures = f"{len(lines)} steps in {sum(line['step_seconds'] for line in lines):.1f} s"
    running.board.say(
        f"trained {row.name} seed {row.seed}: {figures}, valid loss {trained['valid_loss']:.4f} | "
        f"{running.snapshot().summary()}"
    )


# ----------------------------------------------------------------------------------------------------------- measuring


def groups(rows: list[RowSpec], kind: Kind) -> list[list[RowSpec]]:
    """Rows that one start of processes can measure: texts on one process, steps where layout and launcher agree."""
    found: dict[str, list[RowSpec]] = {}
    for row in rows:
        config = row.config
        layout = (row.ranks, row.launcher, row.rate, vars(config.parallel), config.train.engine, config.altup.kernel)
        found.setdefault(json.dumps(layout if kind == "steps" else row.threads), []).append(row)
    return list(found.values())


def _measure(running: Running) -> None:
    """Measure the trained rows in rounds, nothing beside it, and write their lines."""
    kinds: tuple[Kind, ...] = ("steps", "texts")
    for number in range(running.study.measure.rounds):
        for kind in kinds:
            for group in groups(running.pending, kind):
                todo = [row for row in group if not running.folder.place(row).measured(kind, number).exists()]
                if todo:
                    _measure_group(running, kind, number, todo)
        running.board.say(f"measured round {number + 1} of {running.study.measure.rounds}")
    for row in running.pending:
        running.end(row, done_row(running.study, row, running.folder))


def _measure_group(running: Running, kind: Kind, number: int, rows: list[RowSpec]) -> None:
    places = [running.folder.place(row) for row in rows]
    for place in places:
        place.failure.unlink(missing_ok=True)
    log = running.folder.root / "measure.txt"
    words = worker_main.measure_words(kind, number, running.study.measure, [place.root for place in places])
    log.unlink(missing_ok=True)
    code = _wait(running, start(words, rows[0] if kind == "steps" else _alone(rows[0]), log))
    missing = [row for row, place in zip(rows, places, strict=True) if not place.measured(kind, number).exists()]
    if not missing:
        return
    if len(rows) == 1:
        running.fail(rows[0], f"measuring: {reason(code, places[0], log)}")
        return
    running.board.say(f"measuring {len(rows)} rows together failed ({reason(code, places[0], log)}); each alone")
    for row in missing:
        _measure_group(running, kind, number, [row])
