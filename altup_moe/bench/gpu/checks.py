"""The table of checks. Sums of budgets: the whole table fits into 40 minutes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One row. ``function``: of `altup_moe.bench.gpu.MODULE`, from `Sizes` to `Found`.

    ``seconds``: after which its process is ended. ``shows``: what it is for, in a line.
    """

    module: str
    function: str
    seconds: float
    shows: str


CHECKS = {
    "kernels": Check("kernels", "kernels", 250, "Triton kernels against float64: every K, R and type, odd sizes"),
    "mixing": Check("mixing", "mixing", 240, "mixing, forward and backward, as a share of measured copy bandwidth"),
    "losses": Check("losses", "losses", 180, "losses of 20 steps in fp32: the GPU against the CPU"),
    "steps": Check("steps", "steps", 330, "time of a step, K = 2 and 4 over K = 1, mixing inline and deferred"),
    "resume": Check("checkpoints", "resume", 120, "a run cut and resumed writes the losses of one left alone"),
    "checkpoint": Check("checkpoints", "round_trip", 120, "a checkpoint from the GPU to the CPU and back, bit for bit"),
    "nccl": Check("distributed", "nccl", 120, "one NCCL rank with every option on: the losses with all of them off"),
    "two_ranks": Check(
        "distributed", "two_ranks", 240, "two gloo ranks on one GPU: exchanges, halves, streams, events"
    ),
    "waits": Check("waits", "waits", 40, "where a training step makes the host wait for the GPU, and how many times"),
    "launches": Check("launches", "launches", 50, "whether launching takes longer than what is launched; CUDA graphs"),
    "attention": Check("attention", "attention", 20, "attention takes torch's flash kernel, which is right"),
    "memory": Check("memory", "memory", 180, "peak memory of a step against the planner"),
    "train": Check("experts", "train", 150, "tokens a second against transformers' Mixtral"),
    "experts": Check("experts", "experts", 180, "expert backends over a dense MLP, balanced and lopsided"),
    "efficiency": Check("efficiency", "efficiency", 180, "share of the peak that products of small experts reach"),
}
"""By name, in the order in which they run: what is most worth knowing first."""
