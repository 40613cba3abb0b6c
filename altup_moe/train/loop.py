"""A run from start to end: data, model, steps, validations, checkpoints, and a good end on a signal.

What a session of `altup_moe.api` needs as well lies in `run.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from altup_moe.checkpoint.saver import Saved, SaveError
from altup_moe.config import RunConfig
from altup_moe.config.exit_codes import EXIT_DIVERGED, EXIT_STOPPED
from altup_moe.config.output import unfailing_output
from altup_moe.config.run_directory import watchdog_dir
from altup_moe.config.start_clock import mark
from altup_moe.moe.backends import unavailable_overlap
from altup_moe.parallel.control_collectives import any_rank
from altup_moe.parallel.start_meeting import StartMeeting, start_meeting
from altup_moe.parallel.topology import own_rank, topology
from altup_moe.parallel.watchdog import notes
from altup_moe.parallel.watchdog.rank_side import process_group_seconds, watched
from altup_moe.parallel.watchdog.watcher import PREPARING, TRAINING
from altup_moe.train.generation import (
    Generated,
    TrainingGenerator,
    due_after,
    open_generator,
    prepare_generation,
)
from altup_moe.train.guards.after_skip import Diverged, after_skip
from altup_moe.train.loggers import Logger, open_loggers
from altup_moe.train.memory import memory_of
from altup_moe.train.metrics import StepMetrics
from altup_moe.train.resume import ResumePoint
from altup_moe.train.run import (
    PreparedRun,
    Run,
    check_packages,
    prepare_run,
    run_lock,
    start_run,
    start_save,
    take_step,
)
from altup_moe.train.samples import Samples
from altup_moe.train.start_notes import resume_notes, run_notes, start_of, stream_note
from altup_moe.train.stop_signal import StopSignal


def train(config: RunConfig, enough: Callable[[StepMetrics], bool] | None = None) -> int:
    """Train a checked configuration under torchrun or alone; every rank calls it.

    Args:
        enough: rank 0 asks it after every step, once the step is recorded; all ranks stop when it says so, saved.
    Returns:
        0 when all steps are done (or train.stop_after is reached, or it is enough), `EXIT_STOPPED` when a signal
        stopped it; saved. `EXIT_DIVERGED` when its numbers are such that it cannot go on; nothing is saved.
    Raises:
        UserError: what the user can mend, before any process group exists.
    """
    watch = watched(watchdog_dir(config.log.run_dir), config.train.hang_timeout)
    with unfailing_output(), ExitStack() as stack, start_meeting(ends_process=True) as meeting:
        with meeting.telling():
            check_packages(config)
            stack.enter_context(run_lock(config))
            stack.enter_context(watch)
            notes.progress(PREPARING)
            prepared = prepare_run(config, meeting)
            assert prepared.samples is not None
            tokenizer = prepared.samples.tokenizer
            inputs = prepare_generation(prepared.config, tokenizer) if own_rank() == 0 else None
        return _train(prepared, meeting, inputs, enough)


def _train(
    prepared: PreparedRun, meeting: StartMeeting, inputs: Any, enough: Callable[[StepMetrics], bool] | None
) -> int:
    config = prepared.config
    mark("checkpoint found, data opened")
    notes.progress("meeting the other ranks")
    seconds = process_group_seconds(config.train.hang_timeout)
    with (
        topology(config.parallel, seconds, store=meeting.world_store) as topo,
        StopSignal() as stop,
        memory_of(config, topo) as memory,
    ):
        mark("process groups")
        notes.progress("loading")
        with meeting.telling():
            run, resume = start_run(prepared, topo, memory)
            generator = open_generator(run.config, topo, inputs)
        meeting.close()
        loggers: list[Logger] = []
        if topo.is_first:
            assert run.samples is not None
            mark("model built, checkpoint loaded")
            _say_start(run, run.samples, resume)
            loggers = open_loggers(run.config, run.step + 1, resume.changes if resume else None)
        notes.progress(TRAINING)
        try:
            code = _steps(run, loggers, stop, enough if topo.is_first else None, generator)
            # A run shorter than its profile writes what it has.
            run.profile.close()
            if memory is not None:
                memory.end()
            return code
        except Diverged as end:
            if topo.is_first:
                print(f"altup-moe: {end}", file=sys.stderr, flush=True)
            if memory is not None:
                memory.end()  # the same command goes on from the disk, before the first skipped step
            return EXIT_DIVERGED
        finally:
            for logger in loggers:
                logger.close()


def _steps(
    run: Run,
    loggers: list[Logger],
    stop: StopSignal,
    enough: Callable[[StepMetrics], bool] | None = None,
    generator: TrainingGenerator | None = None,
) -> int:
    t = run.config.train
    last = min(t.steps, t.stop_after or t.steps)
    saved = run.step
    while run.step < last:
        metrics = take_step(run, validating=run.step + 1 == last or _due(run.step + 1, t.eval_interval))
        notes.step_done(run.step)
        mark("first step")
        if run.memory is not None:
            # Before the step is recorded: what is recorded is lost by at most memory_interval steps.
            run.memory.after_step(run.step, partial(start_save, run), leaving=run.step == last)
        generated = _generate(run, generator, last, stop)
        for logger in loggers:
            logger.log(replace(metrics, scores=generated.scores))
            if generated.texts:
                logger.log_texts(run.step, generated.texts)
        if run.last is not None and run.last.skipped and (point := after_skip(run)):
            if run.memory is not None:
                run.memory.go_back(run.step)
            if run.topology.is_first:
                _reopen(loggers, run, point)
            continue
        told = enough is not None and enough(metrics)
        signalled, done, writing = any_rank([stop.caught, told, run.saver.busy], run.topology.device)
        stopping = signalled or done
        if run.saver.pending and not writing:
            _end_save(run, run.saver.advance)
        c = run.config.checkpoint
        if stopping or run.step == last or run.step in c.save_at or _due(run.step, c.save_interval):
            _save(run, leaving=stopping or run.step == last)
            saved = run.step
        if done:
            return 0
        if stopping and run.step < last:
            if run.topology.is_first:
                print(f"stopped by a signal after step {saved}, saved; the same command goes on", flush=True)
            return EXIT_STOPPED
    return 0


def _reopen(loggers: list[Logger], run: Run, point: ResumePoint) -> None:
    """The same loggers, which go on after an older step: their lines of later steps are moved away."""
    for logger in loggers:
        logger.close()
    loggers[:] = open_loggers(run.config, run.step + 1, point.changes)


def _generate(run: Run, generator: TrainingGenerator | None, last: int, stop: StopSignal) -> Generated:
    """What is due after the step that was just taken."""
    due = due_after(run.config, run.step, last)
    if generator is None or not due:
        return Generated()
    notes.progress("generating")
    generated = generator.generate(list(run.engine.chunks), run.step, due, lambda: stop.caught)
    notes.progress(TRAINING)
    return generated


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _save(run: Run, leaving: bool) -> None:
    """Start a save of this step, after the one before it; see it through if the run is about to end."""
    notes.progress("saving")
    _end_save(run, run.saver.conclude)
    try:
        start_save(run)
    except SaveError as error:
        if leaving:
            raise
        _not_saved(run, error)
    if leaving or not run.config.checkpoint.asynchronous:
        _end_save(run, run.saver.conclude, leaving)
    notes.progress(TRAINING)


def _end_save(run: Run, end: Callable[[], Saved | None], leaving: bool = False) -> None:
    """Take the save under way further, or to its end; a failure is said, or ends the run (checkpoint.on_failure)."""
    try:
        saved = end()
    except SaveError as error:
        if leaving:
            raise
        _not_saved(run, error)
        return
    if saved and run.topology.is_first:
        figures = f"{saved.bytes / 1e6:,.1f} MB in {saved.seconds:.2f} s, training waited {saved.waited:.2f} s"
        print(f"saved {saved.directory.name}: {figures}", flush=True)


def _not_saved(run: Run, error: SaveError) -> None:
    if run.config.checkpoint.on_failure == "stop":
        raise error
    if run.topology.is_first:
        print(f"{error}; training goes on, the latest checkpoint stays", flush=True)


def _say_start(run: Run, samples: Samples, resume: ResumePoint | None) -> None:
    config, topo = run.config, run.topology
    # A parameter that ZeRO-3 has cut is empty, and knows its size.
    held = sum(getattr(p, "ds_numel", p.numel()) for chunk in run.engine.chunks for p in chunk.parameters())
    print(
        f"run {config.log.run_dir}: {topo.world_size} rank(s) on {topo.device.type}, "
        f"{held:,} parameters on rank 0, torch {torch.__version__}, " + start_of(run.step, resume),
        flush=True,
    )
    print(stream_note(config), flush=True)
    notes = resume_notes(config, resume, topo.world_size) if resume else []
    notes += run_notes(config, len(samples.valid), samples.tokenizer.vocab_size, run.step + 1)
    for line in notes:
        print(line, flush=True)
    for note in samples.notes:
        print(note, flush=True)
    if config.data.shuffle == "run":
        print(
            "samples are in the order of older versions: all epochs of the run shuffled together (data.shuffle run)",
            flush=True,
        )
    shut = unavailable_overlap(config)
    if shut:
        print(shut, flush=True)
