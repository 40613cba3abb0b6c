"""Process groups on a GPU: the whole training command under NCCL, and two ranks that share the GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from altup_moe.bench.gpu.losses import LOSS_GOAL, apart
from altup_moe.bench.gpu.results import Figure, Found
from altup_moe.bench.gpu.sizes import Sizes, run_of
from altup_moe.bench.gpu.stepped import Stepped, stepped
from altup_moe.checkpoint.memory_directory import VARIABLE
from altup_moe.config import AltUpConfig, LogConfig, OverlapConfig, ParallelConfig, RunConfig
from altup_moe.config.run_directory import metrics_file
from altup_moe.parallel.start_ranks import environment_with_package

STEPS = 6
PLAIN = {"overlap.mixing": "inline", "overlap.exchange": "blocking", "train.hang_timeout": "0"}
ALL_ON = {
    "parallel.distributed_optimizer": "true",
    "parallel.overlap_grad_reduce": "true",
    "train.recompute": "full",
    "overlap.microbatch_halves": "true",
    "checkpoint.save_interval": "2",
    "checkpoint.memory_interval": "1",
    "log.profile_steps": "2",
    "log.straggler_interval": "2",
    "moe.alarm_expert_share": "0.9",
    "train.spike_sigma": "6",
}
OLD_TORCH = "train.hang_timeout was left out: this torch has other names for what it notes"


def nccl(sizes: Sizes) -> Found:
    """Losses of `altup-moe train` with all of its machinery on, and with what can be off turned off."""
    watched = hasattr(dist.ProcessGroup, "all_gather_single")
    every = {**ALL_ON, "train.hang_timeout": "60" if watched else "0"}
    with tempfile.TemporaryDirectory() as place:
        plain = train(sizes, PLAIN, Path(place) / "plain")
        all_on = train(sizes, every, Path(place) / "all")
        kept = len(list((Path(place) / "all" / "checkpoints").glob("step_*")))
    found = Found(
        [
            Figure("largest relative difference of losses", apart(plain, all_on), at_most=LOSS_GOAL, exact=True),
            Figure("checkpoints kept", kept, at_least=1, exact=True),
        ]
    )
    if not torch.cuda.is_available():
        found.notes.append("NCCL: not rehearsed, needs CUDA; gloo stood for it")
    if not watched:
        found.notes.append(OLD_TORCH)
    return found


def train(sizes: Sizes, keys: Mapping[str, str], run_dir: Path) -> Stepped:
    """Train with the command that a user types. Raises RuntimeError, with the end of what it said: it failed."""
    shape = sizes.small
    common = {
        "model.num_layers": shape.layers,
        "model.hidden_size": shape.hidden,
        "model.num_attention_heads": 4,
        "model.num_query_groups": 4,
        "model.seq_length": shape.seq,
        "model.vocab_size": 512,
        "altup.width": 4,
        "parallel.expert": 1,
        "train.steps": STEPS,
        "train.micro_batch_size": 2,
        "train.global_batch_size": 4,
        "train.eval_samples": 4,
        "data.cache": run_dir.parent / "tokens",
        "log.run_dir": run_dir,
        "log.tensorboard": "false",
    }
    words = [word for key, value in {**common, **keys}.items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-P", "-m", "altup_moe", "train", "quickstart", *words]
    environment = {**environment_with_package(), VARIABLE: str(run_dir.parent / "memory")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
    lines = [json.loads(line) for line in metrics_file(run_dir).read_text(encoding="utf-8").splitlines()]
    return Stepped([line["loss"] for line in lines], [line["grad_norm"] for line in lines], lines[-1]["memory_gib"])


def shared_runs(sizes: Sizes) -> dict[str, RunConfig]:
    """Two ranks with half of the experts each, and everything that may run while rows travel."""
    base = run_of(sizes.small, 4, "fp32")
    train = replace(base.train, micro_batch_size=2, global_batch_size=4)
    base = replace(base, train=train, parallel=ParallelConfig(expert=2))
    profiled = LogConfig(profile_steps=2)
    return {
        "blocking, inline": replace(base, overlap=OverlapConfig("inline", "blocking")),
        "async, inline": replace(base, overlap=OverlapConfig("inline", "async")),
        "async, deferred, recorded": replace(base, log=profiled),
        "async, deferred, halves": replace(base, overlap=OverlapConfig(microbatch_halves=True)),
        "around branches": replace(base, altup=AltUpConfig(4, "hc", level="branch")),
        "distributed optimizer, recompute": replace(
            base,
            parallel=ParallelConfig(expert=2, distributed_optimizer=True, overlap_grad_reduce=True),
            train=replace(train, recompute="full"),
        ),
    }


def two_ranks(sizes: Sizes) -> Found:
    """Losses of both ranks' run against one rank alone."""
    found = Found()
    alone: dict[AltUpConfig, Stepped] = {}
    for name, run in shared_runs(sizes).items():
        with tempfile.TemporaryDirectory() as place:
            if run.altup not in alone:
                single = replace(run, parallel=ParallelConfig(), log=LogConfig(), overlap=OverlapConfig())
                (alone[run.altup],) = stepped(single, STEPS, Path(place) / "one")
            ranks = stepped(run, STEPS, Path(place) / "two", ranks=2)
        what = f"{name}: largest relative difference of losses from one rank's"
        worst = max(apart(alone[run.altup], rank) for rank in ranks)
        found.figures.append(Figure(what, worst, at_most=LOSS_GOAL, exact=True))
    return found
