"""Fixed cost of a layer, an expert, a micro-batch and a step: what they take however small the tensors are."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
import torch.distributed as dist

from altup_moe.altup.sinkhorn import sinkhorn
from altup_moe.altup.step_costs import SINKHORN_ITERATIONS
from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, RunConfig, TrainConfig
from altup_moe.plan.calibrate.timed_steps import random_batches, timed_steps
from altup_moe.plan.calibrate.timing import PieceWithInputs, forward_backward_seconds
from altup_moe.plan.cpu_cost_model import ForwardBackward


def _tiny_run(layers: int, experts: int, micro_batches: int, recompute: Literal["none", "full"] = "none") -> RunConfig:
    """A run with almost nothing to compute."""
    model = ModelConfig(layers, 16, 16, 2, 1, 8, 64, share_embeddings_and_output_weights=False)
    train = TrainConfig(micro_batch_size=1, global_batch_size=micro_batches, recompute=recompute)
    return RunConfig(model, AltUpConfig(width=2), MoEConfig(experts, ffn_hidden_size=16), train=train)


def calls_us() -> dict[str, ForwardBackward]:
    """Measure all of `cpu_cost_model.CALLS`, microseconds, with tiny runs that differ in one number each."""
    # Megatron's table of router losses has as many layers as the first run with experts.
    runs = {
        "base": _tiny_run(4, 0, 4),
        "layers": _tiny_run(8, 0, 4),
        "batches": _tiny_run(4, 0, 12),
        "two": _tiny_run(4, 2, 4),
        "six": _tiny_run(4, 6, 4),
        "again": _tiny_run(4, 6, 4, "full"),
    }
    t = {name: 1e6 * seconds for name, seconds in zip(runs, _step_seconds(runs.values()), strict=True)}
    # Noise can make a difference of two timings negative, but no call takes negative time.
    layer = max(0.0, t["layers"] - t["base"]) / 16
    ends = max(0.0, (t["batches"] - t["base"]) / 8 - 4 * layer)
    expert = max(0.0, t["six"] - t["two"]) / 64
    experts = max(0.0, (t["two"] - t["base"]) / 16 - 2 * expert)
    # Recomputation runs the forward of a layer once more. The same forward share is used for `ends`.
    again = max(0.0, t["again"] - t["six"]) / 16
    share = min(1.0, again / max(again, layer + experts + 6 * expert, 1e-9))
    both = {"layer": layer, "experts": experts, "expert": expert, "ends": ends}
    step = max(0.0, t["base"] - 4 * (ends + 4 * layer))
    halves = {key: (share * us, (1 - share) * us) for key, us in both.items()}
    return {**halves, "step": (step, 0.0), "iteration": _iteration_us()}


def _iteration_us() -> ForwardBackward:
    """One pass of Sinkhorn's iterations over almost no tokens."""
    pieces: list[PieceWithInputs] = [
        (lambda x: sinkhorn(x, SINKHORN_ITERATIONS, 1e-6), [torch.randn(2, 2, 8)]) for _ in range(20)
    ]
    forward, backward = forward_backward_seconds(pieces)
    passes = 2 * SINKHORN_ITERATIONS - 1
    return 1e6 * forward / passes, 1e6 * backward / passes


def _step_seconds(runs: Iterable[RunConfig]) -> Iterator[float]:
    """The least processor time of a step of each run, in a group of this process alone."""
    with tempfile.TemporaryDirectory() as directory:
        dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=0, world_size=1)
        for run in runs:
            yield min(step.busy for step in timed_steps(run, random_batches(run, run.train.global_batch_size), 8))
        dist.destroy_process_group()
