"""The commands that are run among faults: those that a user types."""

from __future__ import annotations

import sys
from pathlib import Path

from altup_moe.bench.options import FaultsBench
from altup_moe.config.load import HINTS

STEPS = 1_000_000
"""More than any run here takes: a run ends by its time, or by train.stop_after."""
RESTARTS = 1000
MICRO_BATCH = 4

MODEL = {
    "model.num_layers": 2,
    "model.hidden_size": 64,
    "model.ffn_hidden_size": 128,
    "model.num_attention_heads": 4,
    "model.num_query_groups": 2,
    "model.seq_length": 128,
    "model.vocab_size": 512,
    "moe.ffn_hidden_size": 64,
}


def batch_size(ranks: int) -> int:
    """Samples of a step."""
    return 2 * MICRO_BATCH * ranks


def train_command(options: FaultsBench, run_dir: Path, cache: Path, stop_after: int | None = None) -> list[str]:
    """The training command with its launcher.

    Args:
        stop_after: steps of the quiet run; None runs on until it is stopped.
    """
    o = options
    keys: dict[str, object] = {
        **MODEL,
        # Two experts on each of an even number of ranks; all four on each of three.
        "parallel.expert": 1 if o.ranks == 3 else 2,
        "train.steps": STEPS,
        "train.micro_batch_size": MICRO_BATCH,
        "train.global_batch_size": batch_size(o.ranks),
        "train.eval_interval": 0,
        "train.eval_samples": 8,
        "checkpoint.save_interval": o.save_interval,
        "checkpoint.fallback": "true",
        "data.cache": cache,
        "log.run_dir": run_dir,
        "log.interval": 50,
        "log.tensorboard": "false",
        "log.routing_interval": 0,
    }
    if "train.hang_timeout" in HINTS:
        keys["train.hang_timeout"] = o.hang_timeout
    if o.memory_interval is not None:
        keys["checkpoint.memory_interval"] = o.memory_interval
    if stop_after is not None:
        keys["train.stop_after"] = stop_after
    program = [sys.executable, "-P", "-m", "altup_moe"]
    if o.nodes:
        launcher = ["launch", "netlab", "--nodes", str(o.ranks)]
    else:
        launcher = ["launch", "torchrun", "--ranks-per-node", str(o.ranks), "--max-restarts", str(RESTARTS)]
    words = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    return [*program, *launcher, "--", *program, "train", "quickstart", *words]
