"""The small runs whose planned and measured step times `compare_steps` compares."""

from __future__ import annotations

from dataclasses import replace

from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, ParallelConfig, RunConfig, TrainConfig

_MODEL = ModelConfig(4, 256, 704, 8, 4, 256, 2048, share_embeddings_and_output_weights=False)
_EXPERTS = MoEConfig(4, ffn_hidden_size=352)
_BASE = RunConfig(_MODEL, AltUpConfig(width=2), _EXPERTS, train=TrainConfig(micro_batch_size=2, global_batch_size=8))
_DENSE = replace(_BASE, moe=MoEConfig())
_MHC = AltUpConfig(width=4, variant="mhc", level="branch")

LAYOUTS: dict[str, tuple[int, RunConfig]] = {
    "dense, K 4": (1, replace(_DENSE, altup=AltUpConfig(width=4))),
    "experts": (1, _BASE),
    "experts, recomputed": (1, replace(_BASE, train=replace(_BASE.train, recompute="full"))),
    "experts, DP 2": (2, _BASE),
    "experts, EP 2": (2, replace(_BASE, parallel=ParallelConfig(expert=2))),
    "experts, EP 2, delayed": (
        2,
        replace(_BASE, altup=AltUpConfig(width=2, correct="delayed"), parallel=ParallelConfig(expert=2)),
    ),
    "experts, PP 2": (2, replace(_BASE, parallel=ParallelConfig(pipeline=2))),
    "dense, TP 2": (2, replace(_DENSE, parallel=ParallelConfig(tensor=2))),
    "dense, PP 2, VP 2": (2, replace(_DENSE, parallel=ParallelConfig(pipeline=2, virtual_pipeline=2))),
    "dense, mhc, K 4": (1, replace(_DENSE, altup=_MHC)),
    "experts, EP 2, mhc in one pass": (
        2,
        replace(_BASE, altup=replace(_MHC, variant="mhc_single_pass"), parallel=ParallelConfig(expert=2)),
    ),
}
"""Name -> (ranks, run). No layout needs more than two ranks, so two cores are enough."""

STEPS = 11
"""Timed steps of a layout, after two warm-up steps."""
