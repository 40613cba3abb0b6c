"""Whole training runs on ranks: a small run on real text, and the records it writes."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

from altup_moe.config import RunConfig
from altup_moe.config.checks import check_config
from tests.distributed.cases import small, world_size
from tests.distributed.ranks import run_ranks


def text_run(layout: str, directory: Path, name: str, **sections: dict) -> RunConfig:
    """20 steps on python-docs in `directory`/`name`; tokens are shared by the runs of a directory."""
    sections["model"] = {"vocab_size": 320, "seq_length": 32, "init_method_std": 0.05, **sections.get("model", {})}
    sections["train"] = {"eval_samples": 8, **sections.get("train", {})}
    config = small(layout, **sections)
    log = replace(config.log, run_dir=str(directory / name), tensorboard=False)
    return replace(config, log=log, data=replace(config.data, cache=str(directory / "cache")))


def train_quietly(config: RunConfig, ranks: int) -> int:
    """The training of one rank of a group that exists."""
    from altup_moe.train.loop import train

    check_config(config, ranks)
    with contextlib.redirect_stdout(io.StringIO()):
        return train(config)


def train_on_ranks(layout: str, config: RunConfig) -> list[int]:
    """Run to the end; the exit code of every rank."""
    return run_ranks(world_size(layout), train_quietly, config, world_size(layout))


def records(config: RunConfig) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (Path(config.log.run_dir) / "metrics.jsonl").read_text().splitlines()]


def losses(config: RunConfig) -> list[float]:
    """Loss of every step."""
    return [record["loss"] for record in records(config)]
