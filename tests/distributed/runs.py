"""Whole training runs on ranks: a small run on real text, and the records it writes."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from shutil import copytree

from altup_moe.config import RunConfig
from altup_moe.config.checks import check_config
from altup_moe.config.run_directory import checkpoints_dir
from tests.distributed.cases import small, world_size
from tests.distributed.ranks import run_ranks


def text_run(layout: str, directory: Path, name: str, **sections: dict) -> RunConfig:
    """20 steps on python-docs in `directory`/`name`; tokens are shared by the runs of a directory."""
    sections["model"] = {"vocab_size": 320, "seq_length": 32, "init_method_std": 0.05, **sections.get("model", {})}
    # Without watchers: each is a process, and tests/faults has those that matter.
    sections["train"] = {"eval_samples": 8, "hang_timeout": None, **sections.get("train", {})}
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


def command_on_ranks(ranks: int, words: list[str]) -> list[int]:
    """`altup-moe WORDS` on living ranks, without a launcher's start; the exit code of every rank."""
    return run_ranks(ranks, _command, words)


def _command(words: list[str]) -> int:
    from altup_moe.cli import main

    with contextlib.redirect_stdout(io.StringIO()):
        return main(words)


def records(config: RunConfig) -> list[dict]:
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (Path(config.log.run_dir) / "metrics.jsonl").read_text().splitlines()]


def routing_lines(config: RunConfig) -> list[dict]:
    """The lines of a run's routing.jsonl."""
    return [json.loads(line) for line in (Path(config.log.run_dir) / "routing.jsonl").read_text().splitlines()]


def losses(config: RunConfig) -> list[float]:
    """Loss of every step."""
    return [record["loss"] for record in records(config)]


def give_checkpoint(source: RunConfig, target: RunConfig, step: int) -> Path:
    """The source's checkpoint of a step as the only one of the target's run directory."""
    root = checkpoints_dir(target.log.run_dir)
    name = f"step_{step:08d}"
    copytree(checkpoints_dir(source.log.run_dir) / name, root / name)
    (root / "latest").write_text(name)
    return root / name


def load_and_save(config: RunConfig, root: Path) -> None:
    """On a rank: restore the run's latest checkpoint, and save it again elsewhere without a step in between."""
    from altup_moe.checkpoint.saver import Saver
    from altup_moe.parallel.topology import topology
    from altup_moe.train.resume import find_resume_point, verified
    from altup_moe.train.run import build_run, restore_run, start_save

    point = find_resume_point(config)
    assert point is not None
    with topology(config.parallel) as topo:
        point = verified(config, point, topo)
        run = build_run(config, topo, None)
        restore_run(run, point)
        run.saver = Saver(root, config.checkpoint, topo)
        start_save(run)
        run.saver.conclude()
