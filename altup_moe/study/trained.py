"""Train a row to its budget in its own processes, then evaluate the model on held-out text."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from altup_moe.checkpoint.store import latest_checkpoint
from altup_moe.config import RunConfig
from altup_moe.config.checks import check_config, world_size_from_env
from altup_moe.config.load import load_config
from altup_moe.inference.evaluate import evaluate_samples
from altup_moe.inference.load_run import FinishedRun, load_run
from altup_moe.parallel.machine import device_name
from altup_moe.parallel.topology import rank_from_env
from altup_moe.study.hardware import machine_here
from altup_moe.study.records import Experts
from altup_moe.study.study_directory import RowDirectory, read_json_or_none, write_json
from altup_moe.train import loop
from altup_moe.train.batches import Batch, micro_batches
from altup_moe.train.metrics import StepMetrics, peak_memory_gib
from altup_moe.train.mixture import run_samples
from altup_moe.train.samples import Samples


class Enough:
    """Callable that ends a run once it has used its seconds, or once its loss is not finite."""

    def __init__(self, row_directory: RowDirectory, seconds: float | None) -> None:
        self.seconds, self._row_directory, self._spent = seconds, row_directory, -1.0

    def __call__(self, metrics: StepMetrics) -> bool:
        """Whether the run ends after this step. Steps of the run's earlier processes count too (metrics.jsonl)."""
        if self._spent < 0:
            self._spent = spent(self._row_directory, metrics.step - 1)
        self._spent += metrics.step_seconds
        useless = not math.isfinite(metrics.lm_loss)
        return useless or (self.seconds is not None and self._spent >= self.seconds)


def not_finite(row_directory: RowDirectory) -> str | None:
    """Name the first step whose loss is not finite (None in metrics.jsonl); None if all are finite."""
    bad = next((line["step"] for line in row_directory.metrics() if line.get("lm_loss") is None), None)
    return None if bad is None else f"the loss is not finite at step {bad}"


def spent(row_directory: RowDirectory, last: int) -> float:
    """Seconds of the run's steps up to step `last`."""
    return sum(line["step_seconds"] for line in row_directory.metrics() if line["step"] <= last)


def train_row(row_directory: RowDirectory, seconds: float | None) -> int:
    """Train a row, or go on with it, and write its `trained.json`. Every rank calls this.

    Args:
        seconds: the budget, None where train.steps is.
    Returns:
        0, or 75 when a signal stopped it before the budget was used: saved, to be gone on with.
    """
    began = time.perf_counter()
    config = load_config(row_directory.config)
    check_config(config, world_size_from_env())
    enough = Enough(row_directory, seconds)
    if not_finite(row_directory) is None and not _spent_already(row_directory, seconds):
        code = loop.train(config, enough)
        _note_memory(row_directory)
        if code:
            return code
    if rank_from_env() == 0:
        problem = not_finite(row_directory)
        run = None if problem else load_run(row_directory.run_dir)
        figures = {} if run is None else held_out_figures(run, run_samples(run.config, scan=False))
        where = {"device": device_name(), "machine": machine_here()}
        wall = time.perf_counter() - began
        write_json(row_directory.trained, {**figures, "problem": problem, **where, "wall_seconds": wall})
    return 0


def _spent_already(row_directory: RowDirectory, seconds: float | None) -> bool:
    """Whether the run has used its budget of seconds already (it was killed after its last step)."""
    directory = latest_checkpoint(row_directory.run_dir)
    if seconds is None or directory is None:
        return False
    return spent(row_directory, int(directory.name.partition("_")[2].partition(".")[0])) >= seconds


def _note_memory(row_directory: RowDirectory) -> None:
    """Write this rank's peak memory: the largest of all processes of the run so far."""
    file = row_directory.root / f"memory-{rank_from_env()}.json"
    before = (read_json_or_none(file) or {}).get("gib", 0.0)
    write_json(file, {"gib": max(before, peak_memory_gib())})


def held_out_figures(run: FinishedRun, samples: Samples) -> dict[str, Any]:
    """Evaluate the reference model on the held-out samples that the run's validations read.

    Returns:
        ``valid_loss`` (nats a token), ``valid_bits_per_byte``, ``experts`` (None without).
    """
    count = samples.valid_count(run.config)
    valid = evaluate_samples(run, samples.valid, count, samples.byte_lengths)
    experts = routing_of(run, samples, count) if run.config.moe.num_experts else None
    found = {"valid_loss": valid.loss, "valid_bits_per_byte": valid.bits_per_byte}
    return {**found, "experts": asdict(experts) if experts else None}


@torch.no_grad()
def routing_of(run: FinishedRun, samples: Samples, count: int) -> Experts:
    """Route held-out text with the capacity and micro-batches of training.

    (Validation drops nothing: a capacity would let later tokens decide an earlier one's logits.)
    """
    dropped, counts = 0, dict[int, Tensor]()
    for batch in micro_batches(samples.valid, 0, count, run.config.train.micro_batch_size, 0, 1):
        losses = _losses(run, batch.to(run.model.device))
        dropped += sum(int(lost) for lost in losses.dropped.values())
        for layer, counts_E in losses.counts.items():
            counts[layer] = counts.get(layer, 0) + counts_E.cpu()
    return expert_shares(run.config, counts, dropped)


def _losses(run: FinishedRun, batch: Batch) -> Any:
    model: Any = run.model
    encoder = () if batch.encoder_tokens is None else (batch.encoder_tokens, batch.encoder_mask)
    return model.losses(*encoder, batch.tokens, batch.labels, batch.loss_mask, batch.padding_mask)


def expert_shares(config: RunConfig, counts: dict[int, Tensor], dropped: int) -> Experts:
    """Convert routing counts to shares. ``counts``: layer -> [E], before dropping; ``dropped``: over all layers."""
    routes = sum(int(counts_E.sum()) for counts_E in counts.values())
    share_E = {layer: counts_E.double() / counts_E.sum() for layer, counts_E in counts.items()}
    return Experts(
        dropped_share=dropped / routes,
        max_mean_load=max(float(share.max() / share.mean()) for share in share_E.values()),
        load=[share_E[n].tolist() if n in share_E else [] for n in range(config.model.total_layers)],
    )
