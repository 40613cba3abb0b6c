"""Measure trained models: a process holds those of several rows and takes a step or a token of each in turn.

A change of the machine's speed then affects all rows alike. All models are in memory at once.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from altup_moe.checkpoint.restore import restore
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.state import local_tensors
from altup_moe.config import RunConfig, UserError
from altup_moe.config.load import load_config
from altup_moe.inference.load_run import load_run
from altup_moe.model.build import named_tensors
from altup_moe.model.reference.cache_name import CACHE
from altup_moe.parallel.topology import Topology, topology
from altup_moe.study.hardware import machine_here
from altup_moe.study.spec import MeasureSpec
from altup_moe.study.study_directory import RowDirectory, write_json
from altup_moe.timeline.overlap import overlap_by_step
from altup_moe.timeline.spans import record, step
from altup_moe.train.batches import micro_batches
from altup_moe.train.engine import build_engine
from altup_moe.train.mixture import run_samples
from altup_moe.train.resume import find_resume_point
from altup_moe.train.run import keep_compiled_code
from altup_moe.train.step import train_step


def per_round(total: int, rounds: int) -> int:
    """Number of measurements in one round, rounded up."""
    return -(-total // rounds)


def _seconds(began: float) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


class TrainedSteps:
    """Take training steps of a trained model on its first batch, with learning rate 0, so that no weight changes."""

    def __init__(self, config: RunConfig, topo: Topology) -> None:
        self.config, self.topology = config, topo
        self.engine = build_engine(config, topo)
        point = find_resume_point(config)
        if point is None:
            raise UserError(f"{config.log.run_dir}: has no checkpoint")
        with Checkpoint(point.directory) as checkpoint:
            restore(checkpoint, local_tensors(named_tensors(list(self.engine.chunks), config, topo), None))
        self.engine.weights_loaded(False)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = 0.0
        t, samples = config.train, run_samples(config, scan=False)
        self.batches = list(
            micro_batches(samples.train, 0, t.global_batch_size, t.micro_batch_size, topo.data_rank, topo.data_size)
        )

    def take(self) -> None:
        """Take one step: forward, backward, gradient reduction, update."""
        train_step(self.engine, self.batches, self.config, self.topology)

    def timed(self) -> float:
        """Seconds of one step on the slowest rank. All ranks begin together."""
        dist.barrier()
        began = time.perf_counter()
        self.take()
        worst = torch.tensor([_seconds(began)], dtype=torch.float64, device=self.topology.device)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        return float(worst)

    def exchanges(self, steps: int) -> dict[str, list[list[float]]]:
        """Record further steps: ms, by step and rank, of the experts' exchanges in flight, and of waiting for them."""
        with record(self.topology.rank) as recording:
            for _ in range(steps):
                dist.barrier()
                with step():
                    self.take()
        rows = [(report.exchange_ms, report.exposed_ms) for report in overlap_by_step(recording)]
        own = torch.tensor(rows, dtype=torch.float64, device=self.topology.device)
        every = [torch.empty_like(own) for _ in range(self.topology.world_size)]
        dist.all_gather(every, own)
        flights_SR, exposed_SR = torch.stack(every, dim=-1).unbind(1)
        return {"exchange_ms": flights_SR.tolist(), "exposed_ms": exposed_SR.tolist()}


def measure_steps(roots: list[Path], number: int, measure: MeasureSpec) -> int:
    """Measure a round of training steps of rows that share a layout; write their `steps-N.json`. All ranks call it."""
    configs = [load_config(RowDirectory(root).config) for root in roots]
    keep_compiled_code(configs[0])
    with topology(configs[0].parallel) as topo:
        rows = [TrainedSteps(config, topo) for config in configs]
        seconds: list[list[float]] = [[] for _ in rows]
        for turn in range(measure.warmup + per_round(measure.train_steps, measure.rounds)):
            for row, taken in zip(rows, seconds, strict=True):
                one = row.timed()
                if turn >= measure.warmup:
                    taken.append(one)
        steps = per_round(measure.recorded, measure.rounds)
        found: list[dict[str, Any]] = [{"seconds": taken, "machine": machine_here()} for taken in seconds]
        for row, figures in zip(rows, found, strict=True):
            if steps and row.config.parallel.expert > 1:
                figures |= row.exchanges(steps)
        if topo.is_first:
            for root, figures in zip(roots, found, strict=True):
                write_json(RowDirectory(root).measured("steps", number), figures)
    return 0


class Texts:
    """A trained model that reads a held-out prompt and continues it greedily, one token at a time."""

    def __init__(self, model: Any, prompt: Tensor, room: int) -> None:
        self.model, self.prompt, self.room = model, prompt, room
        self.encodes = bool(model.config.is_encoder_decoder)
        self.token: Tensor
        """The token that the model reads next, [1, 1]."""
        self._left = 0
        self._kept: dict[str, Any] = {}

    @classmethod
    def of(cls, root: Path, prompt: int | None) -> Texts:
        """Load a row's model and the first `prompt` tokens of its first held-out sample (None: half of the sample)."""
        run = load_run(RowDirectory(root).run_dir)
        shape, sample = run.config.model, run_samples(run.config, scan=False).valid[0]
        text = sample["encoder_tokens" if shape.encoder_decoder else "tokens"]
        length = prompt or max(1, shape.seq_length // 2)
        room = shape.decoder_length if shape.encoder_decoder else shape.seq_length - length
        return cls(run.model, text[None, :length].to(run.model.device), room)

    def read(self) -> float:
        """Read the prompt (with the encoder, if there is one); seconds per token."""
        began = time.perf_counter()
        if self.encodes:
            context = self.model.get_encoder()(self.prompt)
            seconds = _seconds(began)
            start = self.model.config.decoder_start_token_id or 0
            self.token = torch.full((1, 1), start, device=self.prompt.device)
            self._kept = {"encoder_outputs": context}
        else:
            out = self.model(self.prompt, use_cache=True, logits_to_keep=1)
            self.token = out.logits[:, -1:].argmax(-1)
            seconds = _seconds(began)
            self._kept = {CACHE: out[CACHE]}
        self._left = self.room
        return seconds / self.prompt.shape[1]

    def write(self) -> float:
        """Generate one token through the KV cache; its seconds. A full sequence is begun again, which is not timed."""
        if self._left < 1:
            self.read()
        began = time.perf_counter()
        inputs = {"decoder_input_ids": self.token} if self.encodes else {"input_ids": self.token}
        out = self.model(**inputs, **self._kept, use_cache=True)
        self.token = out.logits[:, -1:].argmax(-1)
        seconds = _seconds(began)
        self._kept[CACHE] = out[CACHE]
        self._left -= 1
        return seconds


@torch.inference_mode()
def measure_texts(roots: list[Path], number: int, measure: MeasureSpec) -> int:
    """Measure a round of prompts and generated tokens of rows on one process, and write their `texts-N.json`."""
    rows = [Texts.of(root, measure.prefill_tokens) for root in roots]
    prefill: list[list[float]] = [[] for _ in rows]
    decode: list[list[float]] = [[] for _ in rows]
    for turn in range(measure.warmup + per_round(measure.prompts, measure.rounds)):
        for row, taken in zip(rows, prefill, strict=True):
            one = row.read()
            if turn >= measure.warmup:
                taken.append(one)
    for turn in range(measure.warmup + per_round(measure.decode_tokens, measure.rounds)):
        for row, taken in zip(rows, decode, strict=True):
            one = row.write()
            if turn >= measure.warmup:
                taken.append(one)
    for root, read, written in zip(roots, prefill, decode, strict=True):
        write_json(RowDirectory(root).measured("texts", number), {"prefill_seconds": read, "decode_seconds": written})
    return 0
