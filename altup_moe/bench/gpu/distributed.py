"""Process groups on a GPU: the whole training command under NCCL, and two ranks that share the GPU."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from altup_moe.bench.gpu.losses import LOSS_GOAL
from altup_moe.bench.gpu.results import Figure, Found
from altup_moe.bench.gpu.sizes import Sizes, run_of
from altup_moe.bench.gpu.stepped import Stepped, apart, stepped, stepped_in_turn
from altup_moe.checkpoint.memory_directory import VARIABLE
from altup_moe.config import AltUpConfig, LogConfig, OverlapConfig, ParallelConfig, RunConfig
from altup_moe.config.run_directory import metrics_file
from altup_moe.parallel.start_ranks import RankError, environment_with_package

STEPS = 6
HANG_SECONDS = 60.0
"""After which two ranks count as hung: each way to run them has its own time, so that one costs no other."""
COMMAND_ON = {
    "parallel.distributed_optimizer": "true",
    "parallel.overlap_grad_reduce": "true",
    "train.recompute": "full",
    "train.hang_timeout": "60",
    "train.spike_sigma": "6",
    "overlap.microbatch_halves": "true",
    "checkpoint.save_interval": "2",
    "checkpoint.memory_interval": "1",
    "log.straggler_interval": "2",
    "moe.alarm_expert_share": "0.9",
}
COMMAND_OFF = {
    "overlap.mixing": "inline",
    "overlap.exchange": "blocking",
    "train.hang_timeout": "0",
    "log.straggler_interval": "0",
}
NOT_REHEARSED = "NCCL: not rehearsed, needs CUDA; gloo stood for it."
NO_PICTURE = "log.profile_steps was left out: matplotlib, which draws the step, is not installed."


def nccl(sizes: Sizes) -> Found:
    """Losses with everything on that a rank alone can have, and with all of it off; then the same by the command."""
    found = Found(notes=[] if torch.cuda.is_available() else [NOT_REHEARSED])
    found.notes += [] if draws() else [NO_PICTURE]
    what = "largest relative difference of losses with everything on"
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        off, on = stepped_in_turn(alone_runs(sizes), STEPS, root / "alone")
        found.notes += [error for error in (off.error, on.error) if error]
        found.figures.append(Figure(what, apart(off, on), at_most=LOSS_GOAL, exact=True))
        recorded = {"log.profile_steps": "2"} if draws() else {}
        off, on = train(sizes, COMMAND_OFF, root / "command-off"), train(sizes, COMMAND_ON | recorded, root / "command")
        kept = len(list((root / "command" / "checkpoints").glob("step_*")))
    found.figures.append(Figure(f"altup-moe train: {what}", apart(off, on), at_most=LOSS_GOAL, exact=True))
    found.figures.append(Figure("altup-moe train: checkpoints kept", kept, at_least=1, exact=True))
    return found


def alone_runs(sizes: Sizes) -> tuple[RunConfig, RunConfig]:
    """One rank with everything off, and on."""
    base = run_of(sizes.small, 4, "fp32")
    base = replace(base, train=replace(base.train, micro_batch_size=sizes.small.samples // 2))
    on = replace(
        base,
        parallel=ParallelConfig(distributed_optimizer=True, overlap_grad_reduce=True),
        train=replace(base.train, recompute="full"),
        overlap=OverlapConfig(microbatch_halves=True),
        log=LogConfig(profile_steps=2 if draws() else 0),
    )
    return replace(base, overlap=OverlapConfig("inline", "blocking")), on


def draws() -> bool:
    """Whether recorded steps can be drawn, as log.profile_steps does."""
    return importlib.util.find_spec("matplotlib") is not None


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
    profiled = LogConfig(profile_steps=2 if draws() else 0)
    return {
        "blocking, inline": replace(base, overlap=OverlapConfig("inline", "blocking")),
        "async, inline": replace(base, overlap=OverlapConfig("inline", "async")),
        "async, deferred, recorded": replace(base, log=profiled),
        "async, deferred, halves": replace(base, overlap=OverlapConfig(microbatch_halves=True)),
        "around branches": replace(base, altup=AltUpConfig(4, "hc", level="branch")),
        "delayed outputs": replace(base, altup=replace(base.altup, correct="delayed")),
        "distributed optimizer, recompute": replace(
            base,
            parallel=ParallelConfig(expert=2, distributed_optimizer=True, overlap_grad_reduce=True),
            train=replace(train, recompute="full"),
        ),
    }


def two_ranks(sizes: Sizes) -> Found:
    """Losses of both ranks' run against one rank alone."""
    found, runs = Found(notes=[] if draws() else [NO_PICTURE]), shared_runs(sizes)
    streams = list(dict.fromkeys(run.altup for run in runs.values()))
    with tempfile.TemporaryDirectory() as place:
        plain = next(iter(runs.values()))
        singles = [replace(plain, altup=altup, parallel=ParallelConfig()) for altup in streams]
        alone = dict(zip(streams, stepped_in_turn(singles, STEPS, Path(place) / "one"), strict=True))
        for number, (name, run) in enumerate(runs.items()):
            try:
                where, seconds = Path(place) / f"two-{number}", HANG_SECONDS * sizes.patience
                ranks = stepped(run, STEPS, where, ranks=2, timeout=seconds)
            except RankError as error:
                # The others are worth knowing all the same.
                ranks = [Stepped(error=str(error))]
            what = f"{name}: largest relative difference of losses from one rank's"
            differences = [apart(alone[run.altup], rank) for rank in ranks]
            worst = math.nan if any(map(math.isnan, differences)) else max(differences)
            found.figures.append(Figure(what, worst, at_most=LOSS_GOAL, exact=True))
            found.notes += [f"{name}: {rank.error}" for rank in ranks if rank.error]
    return found
