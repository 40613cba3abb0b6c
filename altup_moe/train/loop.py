"""A run from start to end: data, model, steps, validations, checkpoints, and a good end on a signal."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from shutil import copytree
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel

from altup_moe.checkpoint import state as checkpoint_state
from altup_moe.checkpoint import store
from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.checks import world_size_from_env
from altup_moe.config.load import save_config
from altup_moe.model.build import build_model, named_tensors
from altup_moe.parallel.topology import Topology, rank_from_env, topology
from altup_moe.train.batches import micro_batches
from altup_moe.train.finished import tokenizer_dir
from altup_moe.train.guards import EXIT_STOPPED, StopSignal
from altup_moe.train.loggers import Logger, check_loggers, open_loggers
from altup_moe.train.metrics import StepMetrics, flops_per_token, peak_memory_gib
from altup_moe.train.optim import build_optimizer, build_scheduler, learning_rate
from altup_moe.train.profile import Profile
from altup_moe.train.resume import ResumePoint, find_resume_point
from altup_moe.train.samples import Samples, open_samples, prepared_prefix
from altup_moe.train.step import StepResult, Validation, train_step, validate


@dataclass
class Run:
    """Everything a rank trains with. Mutable: its model, optimizer and counters move on."""

    config: RunConfig
    topology: Topology
    samples: Samples
    chunks: list[DistributedDataParallel]
    optimizer: Any
    scheduler: Any
    profile: Profile
    step: int = 0
    skipped: int = 0

    @property
    def consumed_samples(self) -> int:
        """Samples that finished steps have seen."""
        return self.step * self.config.train.global_batch_size


def train(config: RunConfig) -> int:
    """Train a checked configuration under torchrun or alone; every rank calls it.

    Returns:
        0 when all steps are done (or train.stop_after is reached), `EXIT_STOPPED` when a signal stopped it, saved.
    Raises:
        UserError: what the user can mend, before any process group exists.
    """
    check_loggers(config.log)
    _keep_compiled_code(config)
    resume = find_resume_point(config, world_size_from_env())
    # Rank 0 prepares and verifies the data first: whatever is wrong with it ends the run before the others meet it.
    samples = open_samples(config, prepared_prefix(config)) if rank_from_env() == 0 else None
    _check_data(resume, samples)
    with topology(config.parallel) as topo, StopSignal() as stop:
        dist.barrier()
        samples = samples or open_samples(config, prepared_prefix(config), scan=False)
        run = _start(config, topo, samples, resume)
        loggers: list[Logger] = []
        if topo.is_first:
            save_config(config, Path(config.log.run_dir) / "config.yaml")
            copytree(samples.tokenizer_dir, tokenizer_dir(config.log.run_dir), dirs_exist_ok=True)
            loggers = open_loggers(config, run.step + 1)
            _say_start(run, resume)
        try:
            code = _steps(run, loggers, stop)
            # A run shorter than its profile writes what it has.
            run.profile.close()
            return code
        finally:
            for logger in loggers:
                logger.close()


def _keep_compiled_code(config: RunConfig) -> None:
    """torch.compile's files lie in the run directory, and its caches that are pickles are not used."""
    if config.altup.kernel == "compile":
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((Path(config.log.run_dir) / "kernels").absolute()))
        os.environ.update(TORCHINDUCTOR_FX_GRAPH_CACHE="0", TORCHINDUCTOR_AUTOGRAD_CACHE="0")


def _check_data(resume: ResumePoint | None, samples: Samples | None) -> None:
    if resume and samples and resume.manifest.data_fingerprint != samples.fingerprint:
        fits = f"{resume.directory} was trained on other tokens; use the same data, or another log.run_dir"
        raise ConfigError("data.corpus", samples.fingerprint[:12], fits)


def _start(config: RunConfig, topo: Topology, samples: Samples, resume: ResumePoint | None) -> Run:
    """Build, seed, and restore a checkpoint if there is one."""
    chunks = build_model(config, topo)
    optimizer = build_optimizer(chunks, config)
    profile = Profile(config.log.profile_steps, Path(config.log.run_dir) / "profile", chunks, topo)
    run = Run(config, topo, samples, chunks, optimizer, build_scheduler(optimizer, config), profile)
    if resume:
        state = store.read_rank(resume.directory, topo.rank)
        named = named_tensors(list(chunks), config, topo)
        checkpoint_state.restore(state, named, optimizer, run.scheduler)
        run.step, run.skipped = resume.manifest.step, resume.manifest.skipped_steps
    return run


def _steps(run: Run, loggers: list[Logger], stop: StopSignal) -> int:
    t = run.config.train
    last = min(t.steps, t.stop_after or t.steps)
    saved = run.step
    while run.step < last:
        metrics = _one_step(run, last)
        for logger in loggers:
            logger.log(metrics)
        stopping = stop.agreed(run.topology.device)
        if stopping or run.step == last or _due(run.step, run.config.checkpoint.save_interval):
            _save(run)
            saved = run.step
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
    rate = learning_rate(run.optimizer)
    with run.profile.step():
        result = train_step(run.chunks, run.optimizer, batches, config, topo)
    run.step += 1
    run.skipped += result.skipped
    seconds = time.perf_counter() - started
    run.profile.settle()
    validation = None
    if run.step == last or _due(run.step, t.eval_interval):
        s = run.samples
        validation = validate(run.chunks, s.valid, s.valid_count(config), s.byte_lengths, config, topo)
    return _metrics(run, result, rate, seconds, validation)


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


def _metrics(run: Run, result: StepResult, rate: float, seconds: float, valid: Validation | None) -> StepMetrics:
    tokens = run.config.train.global_batch_size * run.config.model.seq_length
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


def _save(run: Run) -> None:
    config, topo = run.config, run.topology
    named = named_tensors(list(run.chunks), config, topo)
    manifest = store.Manifest(
        step=run.step,
        consumed_samples=run.consumed_samples,
        skipped_steps=run.skipped,
        world_size=topo.world_size,
        data_fingerprint=run.samples.fingerprint,
        config=config.to_dict(),
    )
    state = checkpoint_state.collect(named, run.optimizer, run.scheduler)
    store.save(config.log.run_dir, manifest, topo.rank, state, dist.barrier, config.checkpoint.keep)


def _say_start(run: Run, resume: ResumePoint | None) -> None:
    config, topo = run.config, run.topology
    held = sum(p.numel() for chunk in run.chunks for p in chunk.parameters())
    print(
        f"run {config.log.run_dir}: {topo.world_size} rank(s) on {topo.device.type}, "
        f"{held:,} parameters on rank 0, torch {torch.__version__}, "
        + (f"going on from step {run.step} ({resume.directory.name})" if resume else "from step 0"),
        flush=True,
    )
