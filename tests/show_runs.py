"""Made-up run directories for the page of a run: curves, a resume, routes of two layers with experts, samples."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

from altup_moe.config import AltUpConfig, LogConfig, MoEConfig, RunConfig, TrainConfig
from altup_moe.config.load import save_config

LIBRARIES = {"torch": "2.13.0", "altup-moe": "0.2.0"}


def config(directory: Path, steps: int = 400, **sections: Any) -> RunConfig:
    """Four layers of which every other has eight experts; keyword arguments replace sections."""
    base = RunConfig(
        altup=AltUpConfig(width=4),
        moe=MoEConfig(num_experts=8, layer_freq=2),
        train=TrainConfig(steps=steps, global_batch_size=16),
        log=LogConfig(run_dir=str(directory)),
    )
    return replace(base, model=replace(base.model, num_layers=4), **sections)


def step_line(step: int, draw: random.Random, shift: float = 0.0) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    loss = 3.0 + shift + 5 * math.exp(-step / 40) + draw.gauss(0, 0.04)
    line = {
        "step": step,
        "loss": loss + 0.02,
        "lm_loss": loss,
        "aux_loss": 0.02 + 0.02 * math.exp(-step / 90),
        "z_loss": 0.0,
        "grad_norm": 0.5 + 4 * math.exp(-step / 20) + abs(draw.gauss(0, 0.1)),
        "learning_rate": 1e-3 * min(1.0, step / 20) * (0.55 + 0.45 * math.cos(math.pi * step / 400)),
        "tokens_per_second": 41_000 + draw.gauss(0, 900),
        "tflops_per_second": 1.2,
        "step_seconds": 0.1 + abs(draw.gauss(0, 0.004)) + (0.3 if step == 1 else 0),
        "memory_gib": 1.4 + 0.1 * (step > 100),
        "consumed_samples": 16 * step,
        "expert_load_imbalance": 1.3 + 2 * math.exp(-step / 60) + abs(draw.gauss(0, 0.05)),
        "dropped_share": 0.02 * math.exp(-step / 50),
        "skipped_steps": int(step >= 7),
    }
    if step % 50 == 0:
        line |= {"eval/squad/f1": 0.1 * step}
        line |= {"valid_loss": loss + 0.05, "valid_perplexity": math.exp(loss), "valid_bits_per_byte": 0.42 * loss}
    return line


def start(step: int, ranks: int, hour: int) -> dict[str, Any]:
    """A line of starts.jsonl."""
    return {
        "step": step,
        "time": f"2026-11-20T{hour:02}:00:00+00:00",
        "checkpoint": f"step_{step:08d}" if step else None,
        "layout": f"expert {ranks}, data {ranks} on {ranks} ranks" if ranks > 1 else "1 rank",
        "ranks": ranks,
        "device": "cpu",
        "processor": "Some CPU 2.0 GHz",
        "cores": 2,
        "threads": 1,
        "system": "Linux 6.1 x86_64",
        "libraries": LIBRARIES,
    }


def routes(step: int, draw: random.Random) -> dict[str, Any]:
    """A line of routing.jsonl: one expert of the first layer is preferred, one of the second hardly used."""
    first = [round(1000 * (1 + draw.gauss(0, 0.1) + (3 * math.exp(-step / 80) if e == 5 else 0))) for e in range(8)]
    second = [round(1000 * (0.1 if e == 2 else 1 + draw.gauss(0, 0.1))) for e in range(8)]
    return {"step": step, "steps": 4, "routes": [[], first, [], second], "dropped": [0, 90, 0, 10]}


def write_run(directory: Path, last: int = 400, seed: int = 0, shift: float = 0.0, **sections: Any) -> Path:
    """A run of 400 steps that has done `last`: resumed after step 200 on more ranks, with two steps done again."""
    draw = random.Random(seed)
    directory.mkdir(parents=True)
    save_config(config(directory, **sections), directory / "config.yaml")
    lines = [step_line(step, draw, shift) for step in range(1, last + 1)]
    lines[2] |= {"exchange_ms": 12.5, "exposed_ms": 4.0, "mixing_ms": 2.0, "mixing_hidden_ms": 1.75}
    if last > 200:
        lines[200]["changed"] = {"optim.learning_rate": [0.001, 0.002]}
    write_lines(directory / "metrics.jsonl", lines)
    write_lines(directory / "metrics.removed.jsonl", [step_line(step, draw) for step in (201, 202)])
    write_lines(directory / "routing.jsonl", [routes(step, draw) for step in range(4, last + 1, 4)])
    write_lines(directory / "starts.jsonl", [start(0, 1, 9), *([start(200, 2, 12)] if last > 200 else [])])
    texts = [{"step": step, "prompt": "The cat", "text": f" sat on mat {step}."} for step in range(100, last + 1, 100)]
    write_lines(directory / "samples.jsonl", texts)
    return directory


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
