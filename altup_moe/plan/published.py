"""Published runs, to compare with the planner's figures. Each chip has one fitted constant, its efficiency."""

from __future__ import annotations

from dataclasses import dataclass, replace

from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, ParallelConfig, RunConfig, TrainConfig
from altup_moe.plan.cluster import load_cluster
from altup_moe.plan.step import StepPlan, plan_step


@dataclass(frozen=True)
class PublishedRun:
    """A run that somebody measured. ``mfu``: as published. ``note``: what our configuration does not reproduce."""

    name: str
    cluster: str
    gpus: int
    mfu: float
    config: RunConfig
    source: str
    note: str = ""


def _run(model: ModelConfig, moe: MoEConfig, parallel: ParallelConfig, batch: int, samples: int = 1) -> RunConfig:
    model = replace(model, share_embeddings_and_output_weights=False)
    parallel = replace(parallel, distributed_optimizer=True, overlap_grad_reduce=True)
    train = TrainConfig(precision="bf16", micro_batch_size=samples, global_batch_size=batch)
    return RunConfig(model, AltUpConfig(width=1), moe, parallel, train=train)


_8X22B = ModelConfig(56, 6144, 16384, 48, 8, 4096, 32768)
_8X7B = ModelConfig(32, 4096, 14336, 32, 8, 4096, 32768)
_LLAMA = ModelConfig(128, 16384, 53248, 128, 8, 8192, 128256)
_GPT_OSS = ModelConfig(36, 2880, 2880, 64, 8, 4096, 201088, kv_channels=64)
_README = "Megatron-LM, megatron/core/transformer/moe/README.md (v0.9 to v0.12)"

PUBLISHED_RUNS = (
    PublishedRun(
        "Mixtral 8x22B",
        "h100x8",
        128,
        0.493,
        _run(_8X22B, MoEConfig(8, ffn_hidden_size=16384), ParallelConfig(2, 8, 7, expert=8), 256),
        "arXiv 2504.14960, abstract: 49.3 % on H100s",
        "layout assumed: TP 2, EP 8, PP 8; interleaving of 7 and batch of 256 from the README named below",
    ),
    PublishedRun(
        "Mixtral 8x7B",
        "h100x8",
        64,
        468 / 989,
        _run(_8X7B, MoEConfig(8, ffn_hidden_size=14336), ParallelConfig(1, 4, 8, expert=8), 256),
        _README + ": 468 TFLOP/s; TP 1, EP 8, PP 4, VP 8",
    ),
    PublishedRun(
        "Llama 3 405B",
        "h100x8",
        8192,
        430 / 989,
        _run(_LLAMA, MoEConfig(), ParallelConfig(8, 16, 8), 2048),
        "glennklockwood.com/garden/llama-3.1 (slide of SC'24): 430 TFLOP/s; TP 8, PP 16, 16M tokens",
        "128 layers instead of 126, which cannot be divided over interleaved stages",
    ),
    PublishedRun(
        "Llama 3 405B",
        "h100x8",
        16384,
        400 / 989,
        _run(_LLAMA, MoEConfig(), ParallelConfig(8, 16, 8), 2048),
        "the same slide: 400 TFLOP/s",
        "as above",
    ),
    PublishedRun(
        "GPT-OSS 120B",
        "h100x8",
        64,
        153 / 989,
        _run(_GPT_OSS, MoEConfig(128, top_k=4, ffn_hidden_size=2880), ParallelConfig(1, 4, expert=8), 512, 4),
        "Megatron-Bridge, docs/performance-summary.md, 25.11: 153 TFLOP/s, BF16, TP 1, PP 4, EP 8",
        "no sliding windows, no biases; its small experts reach a lower share of the peak",
    ),
)
"""Throughputs as read on the named pages. FP8 runs and models with latent attention are not comparable."""


def planned(run: PublishedRun) -> StepPlan:
    """The plan of a published run."""
    return plan_step(run.config, load_cluster(run.cluster), run.gpus)
