"""A model that a benchmark steps repeatedly on one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch

from altup_moe.bench.options import SequenceBench, StepBench, WatchdogBench
from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, RunConfig, TrainConfig
from altup_moe.config.model_schema import Width
from altup_moe.parallel.topology import Topology
from altup_moe.train.batches import Batch
from altup_moe.train.engine import build_engine
from altup_moe.train.step import train_step

Key = TypeVar("Key")
UNCOUNTED = 2
"""Untimed first steps of each model."""


def run_config(bench: StepBench | SequenceBench | WatchdogBench, width: Width) -> RunConfig:
    """Configuration of the stepped model: recycled AltUp of a width."""
    heads = max(1, bench.hidden_size // 64)
    model = ModelConfig(
        num_layers=bench.num_layers,
        hidden_size=bench.hidden_size,
        ffn_hidden_size=bench.hidden_size * 8 // 3 // 64 * 64 or 64,
        num_attention_heads=heads,
        num_query_groups=heads,
        seq_length=bench.seq_length,
        vocab_size=8192,
    )
    moe = MoEConfig(num_experts=bench.moe_experts, ffn_hidden_size=model.ffn_hidden_size // 2)
    train = TrainConfig(micro_batch_size=bench.micro_batch_size, global_batch_size=bench.micro_batch_size)
    return RunConfig(model=model, altup=AltUpConfig(width=width), moe=moe, train=train)


class Stepper:
    """An untrained model and one batch of random tokens."""

    def __init__(self, config: RunConfig, topo: Topology) -> None:
        self.config, self.topology = config, topo
        self.engine = build_engine(config, topo)
        self.chunks = self.engine.chunks
        generator = torch.Generator().manual_seed(0)
        m, size = config.model, config.train.micro_batch_size
        written = m.decoder_length if m.encoder_decoder else m.seq_length
        tokens = torch.randint(m.vocab_size, (size, written + 1), generator=generator)
        self.batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(size, written))
        if m.encoder_decoder:
            read = torch.randint(m.vocab_size, (size, m.seq_length), generator=generator)
            self.batch = replace(self.batch, encoder_tokens=read, encoder_mask=torch.ones(size, m.seq_length))

    def step(self, before_update: Callable[[], None] = lambda: None) -> float:
        """Take one optimizer step; its seconds."""
        started = time.perf_counter()
        train_step(self.engine, [self.batch], self.config, self.topology, before_update)
        wait_for_gpu()
        return time.perf_counter() - started


def wait_for_gpu() -> None:
    """Wait for what was launched, where there is a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def milliseconds_text(median: float, least: float, most: float) -> str:
    """Format seconds as milliseconds for a table: median (least .. most)."""
    return f"{1e3 * median:8.1f} ({1e3 * least:.1f} .. {1e3 * most:.1f})"


def interleaved(steppers: Mapping[Key, Stepper], repeats: int) -> dict[Key, list[float]]:
    """Take a step of each model in turn; seconds of each step after the untimed first ones."""
    seconds: dict[Key, list[float]] = {key: [] for key in steppers}
    for repeat in range(UNCOUNTED + repeats):
        for key, stepper in steppers.items():
            taken = stepper.step()
            if repeat >= UNCOUNTED:
                seconds[key].append(taken)
    return seconds
