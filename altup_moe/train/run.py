"""The parts of a run that its loop and `altup_moe.api` share: prepare, start, restore, take a step, save.

`loop.train` is these in order, with records, notes and signals around them.
"""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import torch

from altup_moe.checkpoint.library_versions import library_versions
from altup_moe.checkpoint.manifest import Manifest
from altup_moe.checkpoint.restore import random_streams, restore
from altup_moe.checkpoint.saver import Saver
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.state import local_tensors, optimizer_steps, set_optimizer_steps
from altup_moe.config import DataError, RunConfig
from altup_moe.config.load import save_config
from altup_moe.config.locks import locked_directory
from altup_moe.config.packages import check_loggers
from altup_moe.config.run_directory import (
    checkpoints_dir,
    config_file,
    kernels_dir,
    profile_dir,
    starts_file,
    tokenizer_dir,
)
from altup_moe.model.build import named_tensors
from altup_moe.model.flops import flops_per_token
from altup_moe.moe.backends import find_backend
from altup_moe.parallel.death_record import note_step
from altup_moe.parallel.parameter_names import is_buffer
from altup_moe.parallel.rng import rng_state, seed_dropout, set_rng_state
from altup_moe.parallel.seeds import derived_seed
from altup_moe.parallel.start_meeting import StartMeeting
from altup_moe.parallel.topology import Topology, own_rank
from altup_moe.train.batches import Batch, SampleDataset, micro_batches
from altup_moe.train.batches_ahead import BatchesAhead
from altup_moe.train.engine import Engine, build_engine
from altup_moe.train.fingerprints import files_fingerprint, program_fingerprint
from altup_moe.train.guards.router_alarms import RouterAlarms
from altup_moe.train.guards.spikes import GuardState, check_rollback, remember, spike
from altup_moe.train.guards.token_ids import BadIds, named
from altup_moe.train.memory import RunMemory
from altup_moe.train.metrics import StepMetrics, overlap_metrics, peak_memory_gib, straggler_metrics
from altup_moe.train.mixture import run_samples
from altup_moe.train.optim import build_scheduler, learning_rate
from altup_moe.train.preflight import check_compiler, check_writable
from altup_moe.train.profile import Profile
from altup_moe.train.resume import ResumePoint, check_tokens, find_resume_point, verified
from altup_moe.train.routing import RoutingSums
from altup_moe.train.sample_order import ordered
from altup_moe.train.samples import Samples
from altup_moe.train.start_record import append_start, start_record
from altup_moe.train.step import StepResult, Validation, train_step, validate
from altup_moe.train.stragglers import Stragglers


@dataclass
class Run:
    """Everything a rank trains with. Mutable: its engine and counters move on.

    ``samples``: None where all batches are the caller's own.
    """

    config: RunConfig
    topology: Topology
    samples: Samples | None
    engine: Engine
    scheduler: Any
    profile: Profile
    routing: RoutingSums
    saver: Saver
    stragglers: Stragglers
    ahead: BatchesAhead | None = None
    """Micro-batches of the next step; None where all are the caller's own."""
    memory: RunMemory | None = None
    step: int = 0
    skipped: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    """Keys that the run has changed on its way (`Manifest.changes`)."""
    passed_over: list[dict[str, Any]] = field(default_factory=list)
    """Samples that a rollback has left out (`Manifest.passed_over`)."""
    guard: GuardState = field(default_factory=GuardState)
    alarms: RouterAlarms | None = None
    last: StepResult | None = None
    """The step that was taken, or skipped, last."""
    rolled_back: tuple[int, int] = (0, 0)
    """Step that this process went back to last, and how many times in a row it was that one."""

    def settle(self) -> None:
        """Wait until no save reads weights or optimizer state any more."""
        self.saver.settle()
        if self.memory is not None:
            self.memory.saver.settle()

    @property
    def consumed_samples(self) -> int:
        """Samples that finished steps have seen, and those that were passed over."""
        passed = sum(stop - start for start, stop in (entry["samples"] for entry in self.passed_over))
        return self.step * self.config.train.global_batch_size + passed


@dataclass(frozen=True)
class PreparedRun:
    """A run before any process group exists: its data is there, and what it goes on from is known.

    ``samples``: None where all batches are the caller's own. ``damage``: why the checkpoint on disk cannot be used;
    there may be one in memory.
    """

    config: RunConfig
    resume: ResumePoint | None
    samples: Samples | None
    damage: DataError | None = None


def check_packages(config: RunConfig) -> None:
    """Raise ConfigError for a tracker or a backend that is not there."""
    check_loggers(config.log)
    if config.moe.num_experts:
        find_backend(config.moe.backend)


def run_lock(config: RunConfig) -> AbstractContextManager[None]:
    """Rank 0, which writes the records, holds the run directory for all. Raises UserError if another run has it."""
    if own_rank():
        return nullcontext()
    return locked_directory(Path(config.log.run_dir), "training", "name another log.run_dir")


def prepare_run(config: RunConfig, meeting: StartMeeting, with_data: bool = True) -> PreparedRun:
    """Find the checkpoint that a checked configuration goes on from, and its data; agree on it with all ranks.

    Rank 0 prepares and verifies the data first: whatever is wrong with it ends the run before the others meet it.

    Args:
        meeting: open, inside its `telling`.
    Raises:
        UserError: what the user can mend. PeerError: what another rank must, or ranks differ.
    """
    keep_compiled_code(config)
    meeting.agree(lambda: program_fingerprint(config, "cuda" if torch.cuda.is_available() else "cpu"))
    config = ordered(config)
    check_rollback(config)
    resume, damage = None, None
    try:
        resume = find_resume_point(config)
    except DataError as error:
        if config.checkpoint.memory_interval is None:
            raise
        damage = error
    # A run that is done saves nothing more.
    last = min(config.train.steps, config.train.stop_after or config.train.steps)
    done = 0 if resume is None or resume.weights_only else resume.manifest.step
    check_compiler(config)
    check_writable(config, with_room=done < last)
    first = own_rank() == 0
    samples = run_samples(config) if with_data and first else None
    meeting.first_is_ready()
    if with_data and not first:
        samples = run_samples(config, scan=False)
    if samples is not None:
        check_tokens(resume, samples.fingerprint, samples.tokenizer.sha256)
    meeting.agree(lambda: files_fingerprint(config, resume, samples))
    return PreparedRun(config, resume, samples, damage)


def keep_compiled_code(config: RunConfig) -> None:
    """torch.compile's files lie in the run directory, and its caches that are pickles are not used."""
    if config.altup.kernel == "compile" or config.train.compile:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kernels_dir(config.log.run_dir).absolute()))
        os.environ.update(TORCHINDUCTOR_FX_GRAPH_CACHE="0", TORCHINDUCTOR_AUTOGRAD_CACHE="0")


def start_run(prepared: PreparedRun, topo: Topology, memory: RunMemory | None = None) -> tuple[Run, ResumePoint | None]:
    """Build, seed, and restore the checkpoint if there is one; rank 0 writes the run's files. Collective.

    Args:
        memory: of the nodes; what is there is taken unless the disk has newer.
    Returns:
        The run, and the point that it goes on from: with checkpoint.fallback it may be older than the prepared one.
    Raises:
        DataError: the checkpoint's bytes are not those that were saved.
    """
    began = time.perf_counter()
    config, samples = prepared.config, prepared.samples
    resume = _point(prepared, topo, memory, samples)
    run = build_run(config, topo, samples)
    run.memory = memory
    if resume:
        restore_run(run, resume)
    loading = time.perf_counter() - began
    if topo.is_first:
        save_config(config, config_file(config.log.run_dir))
        if samples is not None:
            copytree(samples.tokenizer_dir, tokenizer_dir(config.log.run_dir), dirs_exist_ok=True)
        if run.step < config.train.steps:
            source = resume.directory.name if resume else None
            record = start_record(config, topo.world_size, run.step, source, loading)
            append_start(starts_file(config.log.run_dir), record)
    if memory is not None:
        memory.begin(run.step)
    return run, resume


def _point(
    prepared: PreparedRun, topo: Topology, memory: RunMemory | None, samples: Samples | None
) -> ResumePoint | None:
    """The checkpoint that the run goes on from, its bytes verified. Collective."""
    disk = prepared.resume
    if memory is not None:
        point = memory.newer_point(disk.manifest.step if disk and not disk.weights_only else -1)
        if point is not None:
            if samples is not None:
                check_tokens(point, samples.fingerprint, samples.tokenizer.sha256)
            return point
    if prepared.damage is not None:
        raise prepared.damage
    return verified(prepared.config, disk, topo) if disk else None


def build_run(config: RunConfig, topo: Topology, samples: Samples | None) -> Run:
    """The run at step 0, its weights seeded. Collective."""
    engine = build_engine(config, topo)
    profile = Profile(config.log.profile_steps, profile_dir(config.log.run_dir), engine.chunks, topo)
    saver = Saver(checkpoints_dir(config.log.run_dir), config.checkpoint, topo)
    scheduler, routing = build_scheduler(engine.optimizer, config), RoutingSums(config)
    stragglers = Stragglers(config.log, topo)
    alarms = RouterAlarms(config.moe)
    run = Run(config, topo, samples, engine, scheduler, profile, routing, saver, stragglers)
    if samples is not None:
        run.ahead = BatchesAhead(partial(batches_from, run, samples.train), topo.device)
    run.alarms = alarms if alarms.on else None
    return run


def restore_run(run: Run, resume: ResumePoint) -> None:
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
    run.passed_over, run.guard = manifest.passed_over, GuardState.from_dict(manifest.guards)
    if streams:
        set_rng_state(streams)
    else:
        # Another layout draws other dropout masks; from the same seed it would draw those of step 0 again.
        seed_dropout(derived_seed(config.train.seed, "resumed at", manifest.step), topo)


def step_batches(run: Run, dataset: SampleDataset) -> list[Batch]:
    """This rank's micro-batches of the run's next step, cut from training samples by number."""
    return batches_from(run, dataset, run.consumed_samples)


def batches_from(run: Run, dataset: SampleDataset, start: int) -> list[Batch]:
    """This rank's micro-batches of the step whose first sample is `start`."""
    t, topo = run.config.train, run.topology
    return list(micro_batches(dataset, start, t.global_batch_size, t.micro_batch_size, topo.data_rank, topo.data_size))


def _own_batches(run: Run, ahead: BatchesAhead) -> list[Batch]:
    """Those of the run's next step; those of the one after it are begun, if it has one."""
    t, start = run.config.train, run.consumed_samples
    last = min(t.steps, t.stop_after or t.steps)
    return ahead.take(start, start + t.global_batch_size if run.step + 1 < last else None)


def take_step(run: Run, batches: list[Batch] | None = None, validating: bool = False) -> StepMetrics:
    """Take one optimizer step, and validate after it if asked; its record, the same on every rank. Collective.

    Args:
        batches: this rank's micro-batches; None cuts them from the run's own samples.
    Raises:
        DataError: an id that is no token, with its sample and where it is known its file; on every rank.
    """
    note_step(run.step + 1)
    started = time.perf_counter()
    dataset = None
    with run.stragglers.step():
        if batches is None:
            assert run.samples is not None
            assert run.ahead is not None
            dataset = run.samples.train
            batches = _own_batches(run, run.ahead)
        # The schedule is stepped first: step 1 trains at the first warm-up value, not at zero.
        run.scheduler.step(1)
        rate = learning_rate(run.engine.optimizer)
        with run.profile.step():
            spiked = partial(spike, run.config.train, run.guard)
            try:
                result = train_step(run.engine, batches, run.config, run.topology, run.settle, spiked)
            except BadIds as error:
                size, vocab_size = run.config.train.micro_batch_size, run.config.model.vocab_size
                raise named(error, dataset, run.consumed_samples, size, vocab_size, run.topology) from None
    run.step += 1
    run.skipped += result.skipped
    run.last = result
    run.guard = remember(run.config.train, run.guard, result.lm_loss, result.grad_norm, result.skipped)
    seconds = time.perf_counter() - started
    recorded, slowest = run.profile.settle(), run.stragglers.settle()
    metrics = _metrics(run, result, rate, seconds, validate_run(run) if validating else None)
    if run.alarms is not None:
        active, lines = run.alarms.step(result.routing)
        metrics = replace(metrics, router_alarms=active)
        for line in lines if run.topology.is_first else ():
            print(f"step {run.step}: {line}", flush=True)
    found = {**overlap_metrics(recorded), **straggler_metrics(slowest)}
    return replace(metrics, routing=run.routing.step(result.routing, run.step), **found)


def validate_run(run: Run) -> Validation:
    """Loss of the validation samples that train.eval_samples asks for. Collective."""
    s = run.samples
    assert s is not None
    return validate(run.engine.chunks, s.valid, s.valid_count(run.config), s.byte_lengths, run.config, run.topology)


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


def start_save(run: Run, saver: Saver | None = None) -> None:
    """Start to save the run as it is, by a saver that has no save under way. Collective.

    Args:
        saver: None is `run.saver`.
    Raises:
        SaveError: the disk is too full, or the directory cannot be made.
    """
    head = Manifest(
        step=run.step,
        consumed_samples=run.consumed_samples,
        skipped_steps=run.skipped,
        optimizer_steps=optimizer_steps(run.engine.optimizer),
        scheduler_steps=run.scheduler.num_steps,
        world_size=run.topology.world_size,
        data_fingerprint=run.samples.fingerprint if run.samples is not None else "",
        config=run.config.to_dict(),
        libraries=library_versions(),
        changes=run.history,
        passed_over=run.passed_over,
        tokenizer_sha256=run.samples.tokenizer.sha256 if run.samples is not None else "",
        guards=run.guard.to_dict(),
    )
    named = named_tensors(list(run.engine.chunks), run.config, run.topology)
    (saver or run.saver).start(head, local_tensors(named, run.engine.optimizer), rng_state())
