"""A run from start to end: data, model, steps, validations, checkpoints, and a good end on a signal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copytree
from typing import Any

import torch
import torch.distributed as dist

from altup_moe.checkpoint.library_versions import library_versions
from altup_moe.checkpoint.manifest import Manifest
from altup_moe.checkpoint.restore import random_streams, restore
from altup_moe.checkpoint.saver import Saved, SaveError, Saver
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.state import local_tensors, optimizer_steps, set_optimizer_steps
from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.exit_codes import EXIT_STOPPED
from altup_moe.config.load import save_config
from altup_moe.config.locks import locked_directory
from altup_moe.config.run_directory import checkpoints_dir, config_file, kernels_dir, profile_dir, tokenizer_dir
from altup_moe.model.build import named_tensors
from altup_moe.model.flops import flops_per_token
from altup_moe.moe.backends import find_backend, unavailable_overlap
from altup_moe.parallel.control_collectives import any_rank
from altup_moe.parallel.parameter_names import is_buffer
from altup_moe.parallel.rng import rng_state, seed_dropout, set_rng_state
from altup_moe.parallel.seeds import derived_seed
from altup_moe.parallel.topology import Topology, rank_from_env, topology
from altup_moe.train.batches import micro_batches
from altup_moe.train.engine import Engine, build_engine
from altup_moe.train.loggers import Logger, check_loggers, open_loggers
from altup_moe.train.metrics import StepMetrics, peak_memory_gib
from altup_moe.train.mixture import run_samples
from altup_moe.train.optim import build_scheduler, learning_rate
from altup_moe.train.profile import Profile
from altup_moe.train.resume import ResumePoint, find_resume_point, verified
from altup_moe.train.sample_order import ordered
from altup_moe.train.samples import Samples
from altup_moe.train.start_notes import resume_notes, run_notes, stream_note
from altup_moe.train.step import StepResult, Validation, train_step, validate
from altup_moe.train.stop_signal import StopSignal


@dataclass
class Run:
    """Everything a rank trains with. Mutable: its engine and counters move on."""

    config: RunConfig
    topology: Topology
    samples: Samples
    engine: Engine
    scheduler: Any
    profile: Profile
    saver: Saver
    step: int = 0
    skipped: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    """Keys that the run has changed on its way (`Manifest.changes`)."""

    @property
    def consumed_samples(self) -> int:
        """Samples that finished steps have seen."""
        return self.step * self.config.train.global_batch_size


def train(config: RunConfig, enough: Callable[[StepMetrics], bool] | None = None) -> int:
    """Train a checked configuration under torchrun or alone; every rank calls it.

    Args:
        enough: rank 0 asks it after every step, once the step is recorded; all ranks stop when it says so, saved.
    Returns:
        0 when all steps are done (or train.stop_after is reached, or it is enough), `EXIT_STOPPED` when a signal
        stopped it; saved.
    Raises:
        UserError: what the user can mend, before any process group exists.
    """
    check_loggers(config.log)
    if config.moe.num_experts:
        find_backend(config.moe.backend)
    with _run_lock(config):
        return _train(config, enough)


def _run_lock(config: RunConfig) -> AbstractContextManager[None]:
    """Rank 0, which writes the records, holds the run directory for all."""
    if rank_from_env():
        return nullcontext()
    return locked_directory(Path(config.log.run_dir), "training", "name another log.run_dir")


def _train(config: RunConfig, enough: Callable[[StepMetrics], bool] | None) -> int:
    keep_compiled_code(config)
    config = ordered(config)
    resume = find_resume_point(config)
    # Rank 0 prepares and verifies the data first: whatever is wrong with it ends the run before the others meet it.
    samples = run_samples(config) if rank_from_env() == 0 else None
    _check_data(resume, samples)
    with topology(config.parallel) as topo, StopSignal() as stop:
        dist.barrier()
        samples = samples or run_samples(config, scan=False)
        resume = verified(config, resume, topo) if resume else None
        run = _start(config, topo, samples, resume)
        loggers: list[Logger] = []
        if topo.is_first:
            save_config(config, config_file(config.log.run_dir))
            copytree(samples.tokenizer_dir, tokenizer_dir(config.log.run_dir), dirs_exist_ok=True)
            _say_start(run, resume)
            loggers = open_loggers(config, run.step + 1, resume.changes if resume else None)
        try:
            code = _steps(run, loggers, stop, enough if topo.is_first else None)
            # A run shorter than its profile writes what it has.
            run.profile.close()
            return code
        finally:
            for logger in loggers:
                logger.close()


def keep_compiled_code(config: RunConfig) -> None:
    """torch.compile's files lie in the run directory, and its caches that are pickles are not used."""
    if config.altup.kernel == "compile":
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kernels_dir(config.log.run_dir).absolute()))
        os.environ.update(TORCHINDUCTOR_FX_GRAPH_CACHE="0", TORCHINDUCTOR_AUTOGRAD_CACHE="0")


def _check_data(resume: ResumePoint | None, samples: Samples | None) -> None:
    if resume is None or resume.weights_only or samples is None:
        return
    # A converted model was not trained here: no tokens to compare.
    if resume.manifest.data_fingerprint not in ("", samples.fingerprint):
        fits = f"{resume.directory} was trained on other tokens; use the same data, or another log.run_dir"
        raise ConfigError("data.corpus", samples.fingerprint[:12], fits)


def _start(config: RunConfig, topo: Topology, samples: Samples, resume: ResumePoint | None) -> Run:
    """Build, seed, and restore a checkpoint if there is one."""
    engine = build_engine(config, topo)
    profile = Profile(config.log.profile_steps, profile_dir(config.log.run_dir), engine.chunks, topo)
    saver = Saver(checkpoints_dir(config.log.run_dir), config.checkpoint, topo)
    run = Run(config, topo, samples, engine, build_scheduler(engine.optimizer, config), profile, saver)
    if resume:
        _restore(run, resume)
    return run


def _restore(run: Run, resume: ResumePoint) -> None:
    """Weights; and unless only they are wanted, the optimizer, counters and random streams as they were."""
    config, topo, manifest = run.config, run.topology, resume.manifest
    with_optimizer = manifest.has_optimizer and not resume.weights_only
    with Checkpoint(resume.directory) as checkpoint:
        named = named_tensors(list(run.engine.chunks), config, topo)
        held = local_tensors(named, run.engine.optimizer if with_optimizer else None)
        if resume.weights_only:
            # Routers' biases and loads that the other run did not have begin as those of any new run.
            stored = manifest.tensors
            held = [one for one in held if one.part.name in stored or not is_buffer(one.part.name)]
        restore(checkpoint, held)
        streams = random_streams(checkpoint, topo.rank) if resume.same_streams(config, topo.world_size) else {}
    run.engine.weights_loaded(with_optimizer)
    if resume.weights_only:
        return
    set_optimizer_steps(run.engine.optimizer, manifest.optimizer_steps)
    run.scheduler.step(manifest.scheduler_steps - run.scheduler.num_steps)
    run.step, run.skipped, run.history = manifest.step, manifest.skipped_steps, resume.history
    if streams:
        set_rng_state(streams)
    else:
        # Another layout draws other dropout masks; from the same seed it would draw those of step 0 again.
        seed_dropout(derived_seed(config.train.seed, "resumed at", manifest.step), topo)


def _steps(
    run: Run, loggers: list[Logger], stop: StopSignal, enough: Callable[[StepMetrics], bool] | None = None
) -> int:
    t = run.config.train
    last = min(t.steps, t.stop_after or t.steps)
    saved = run.step
    while run.step < last:
        metrics = _one_step(run, last)
        for logger in loggers:
            logger.log(metrics)
        told = enough is not None and enough(metrics)
        signalled, done, writing = any_rank([stop.caught, told, run.saver.busy], run.topology.device)
        stopping = signalled or done
        if run.saver.pending and not writing:
            _end_save(run, run.saver.advance)
        if stopping or run.step == last or _due(run.step, run.config.checkpoint.save_interval):
            _save(run, leaving=stopping or run.step == last)
            saved = run.step
        if done:
            return 0
        if stopping and run.step < last:
            if run.topology.is_first:
                print(f"stopped by a signal after step {saved}, saved; the same command goes on", flush=True)
            return EXIT_STOPPED
    return 0


def _one_step(run: Run, last: int) -> StepMetrics:
    config, topo, t = run.config, run.topology, run.config.train
    started = time.perf_counter()
    batches = list(
        micro_batches(
            run.samples.train,
            run.consumed_samples,
            t.global_batch_size,
            t.micro_batch_size,
            topo.data_rank,
            topo.data_size,
        )
    )
    # The schedule is stepped first: step 1 trains at the first warm-up value, not at zero.
    run.scheduler.step(1)
    rate = learning_rate(run.engine.optimizer)
    with run.profile.step():
        result = train_step(run.engine, batches, config, topo, run.saver.settle)
    run.step += 1
    run.skipped += result.skipped
    seconds = time.perf_counter() - started
    run.profile.settle()
    validation = None
    if run.step == last or _due(run.step, t.eval_interval):
        s = run.samples
        validation = validate(run.engine.chunks, s.valid, s.valid_count(config), s.byte_lengths, config, topo)
    return _metrics(run, result, rate, seconds, validation)


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _metrics(run: Run, result: StepResult, rate: float, seconds: float, valid: Validation | None) -> StepMetrics:
    tokens = run.config.train.global_batch_size * run.config.model.tokens_per_sample
    routing = result.routing
    return StepMetrics(
        step=run.step,
        loss=result.loss,
        lm_loss=result.lm_loss,
        aux_loss=routing.aux_loss if routing else None,
        z_loss=routing.z_loss if routing else None,
        grad_norm=result.grad_norm,
        learning_rate=rate,
        tokens_per_second=tokens / seconds,
        tflops_per_second=tokens * flops_per_token(run.config) / seconds / 1e12,
        step_seconds=seconds,
        memory_gib=peak_memory_gib(),
        consumed_samples=run.consumed_samples,
        expert_load_imbalance=routing.load_imbalance if routing else None,
        dropped_share=routing.dropped_share if routing else None,
        skipped_steps=run.skipped,
        valid_loss=valid.loss if valid else None,
        valid_perplexity=valid.perplexity if valid else None,
        valid_bits_per_byte=valid.bits_per_byte if valid else None,
    )


def _save(run: Run, leaving: bool) -> None:
    """Start a save of this step, after the one before it; see it through if the run is about to end."""
    config, topo = run.config, run.topology
    _end_save(run, run.saver.conclude)
    head = Manifest(
        step=run.step,
        consumed_samples=run.consumed_samples,
        skipped_steps=run.skipped,
        optimizer_steps=optimizer_steps(run.engine.optimizer),
        scheduler_steps=run.scheduler.num_steps,
        world_size=topo.world_size,
        data_fingerprint=run.samples.fingerprint,
        config=config.to_dict(),
        libraries=library_versions(),
        changes=run.history,
    )
    named = named_tensors(list(run.engine.chunks), config, topo)
    try:
        run.saver.start(head, local_tensors(named, run.engine.optimizer), rng_state())
    except SaveError as error:
        if leaving:
            raise
        _not_saved(run, error)
    if leaving or not config.checkpoint.asynchronous:
        _end_save(run, run.saver.conclude, leaving)


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


def _say_start(run: Run, resume: ResumePoint | None) -> None:
    config, topo = run.config, run.topology
    # A parameter that ZeRO-3 has cut is empty, and knows its size.
    held = sum(getattr(p, "ds_numel", p.numel()) for chunk in run.engine.chunks for p in chunk.parameters())
    print(
        f"run {config.log.run_dir}: {topo.world_size} rank(s) on {topo.device.type}, "
        f"{held:,} parameters on rank 0, torch {torch.__version__}, "
        + (f"going on from step {run.step} ({resume.directory.name})" if resume else "from step 0"),
        flush=True,
    )
    print(stream_note(config), flush=True)
    notes = resume_notes(config, resume, topo.world_size) if resume else []
    notes += run_notes(config, len(run.samples.valid), run.samples.tokenizer.vocab_size, run.step + 1)
    for line in notes:
        print(line, flush=True)
    for note in run.samples.notes:
        print(note, flush=True)
    if config.data.shuffle == "run":
        print(
            "samples are in the order of older versions: all epochs of the run shuffled together (data.shuffle run)",
            flush=True,
        )
    shut = unavailable_overlap(config)
    if shut:
        print(shut, flush=True)
