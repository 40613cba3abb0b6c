"""Samples and tasks while a run trains: what is generated is what the step's checkpoint gives, and training stays."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from altup_moe.config import RunConfig
from altup_moe.config.run_directory import checkpoints_dir, samples_file, tokenizer_dir
from altup_moe.data.tasks.registry import TASKS, load_examples
from altup_moe.inference.answers import score
from altup_moe.inference.generate import continuation
from altup_moe.inference.load_run import load_checkpoint
from tests.distributed.cases import small_t5
from tests.distributed.runs import records, text_run, train_on_ranks

pytestmark = pytest.mark.distributed

# With every slice of a tensor on another rank: stages, tensor and expert ranks, and ZeRO's partitions.
TRIED = [
    *(("one", "gpt", "megatron"), ("tp2-pp2-ep2", "gpt", "megatron"), ("tp2-ep2", "t5", "megatron")),
    pytest.param("dp2", "gpt", "deepspeed", marks=pytest.mark.long),
]
PROMPTS = ("The list type", "A function that")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("runs")
    rows = [{"sentence": f"film {n} is {'fine' if n % 3 else 'dull'}", "label": int(n % 3 > 0)} for n in range(7)]
    (found / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


def generating(config: RunConfig, directory: Path) -> RunConfig:
    """The same run with samples after every step and a task at each validation."""
    log = replace(config.log, run_dir=f"{config.log.run_dir}-generating", sample_interval=1)
    log = replace(log, sample_prompts=PROMPTS, sample_tokens=6, sample_temperature=1.0)
    data = replace(config.data, task_files=(f"sst2={directory}",))
    return replace(config, log=log, data=data, train=replace(config.train, eval_tasks=("sst2",), eval_task_limit=5))


@pytest.mark.parametrize(("layout", "arch", "engine"), TRIED)
def test_what_is_generated_is_that_of_the_checkpoint(layout: str, arch: str, engine: str, directory: Path) -> None:
    """Dropout is on: a random state that is touched would show in the next loss."""
    model = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
    train = {"steps": 2, "eval_interval": 1, "engine": engine}
    # Steps so large that each writes other texts.
    optim = {"learning_rate": 0.05, "warmup_steps": 0, "schedule": "constant"}
    sections = {"model": model, "train": train, "optim": optim, "checkpoint": {"save_interval": 1}}
    if arch == "t5":
        base = small_t5(layout)
        sections["model"] = {**{k: getattr(base.model, k) for k in T5_KEYS}, **model}
        sections["data"] = {"sentinels": 8}
    if engine == "deepspeed":
        sections |= {"parallel": {"zero_stage": 3}, "moe": {"num_experts": 0, "layer_freq": 1}}
    plain = text_run(layout, directory, f"{arch}-{layout}", **sections)
    config = generating(plain, directory)
    for each in (plain, config):
        assert set(train_on_ranks(layout, each)) == {0}
    for key in ("loss", "grad_norm", "valid_loss"):
        assert [r.get(key) for r in records(config)] == [r.get(key) for r in records(plain)], key
    written = [json.loads(line) for line in samples_file(config.log.run_dir).read_text().splitlines()]
    assert [(line["step"], line["prompt"]) for line in written] == [(step, p) for step in (1, 2) for p in PROMPTS]
    assert [r["step"] for r in records(config) if "eval/sst2/accuracy" in r] == [1, 2]
    examples = load_examples(TASKS["sst2"], "validation", {"sst2": directory}, directory)[:5]
    for step in (1, 2):
        saved = checkpoints_dir(config.log.run_dir) / f"step_{step:08d}"
        run = load_checkpoint(saved, config, tokenizer_dir(config.log.run_dir), torch.device("cpu"))
        for line in (line for line in written if line["step"] == step):
            assert line["text"] == continuation(run, line["prompt"], 6, 1.0, 0.95, 0)
        (record,) = (r for r in records(config) if r["step"] == step)
        assert record["eval/sst2/accuracy"] == score(run, TASKS["sst2"], examples, 16).metrics["accuracy"]
    assert [line["text"] for line in written[:2]] != [line["text"] for line in written[2:]]
    assert not samples_file(plain.log.run_dir).exists()


T5_KEYS = ("arch", "num_layers", "num_decoder_layers", "num_query_groups", "kv_channels", "decoder_seq_length",
           "relative_attention_num_buckets", "relative_attention_max_distance")  # fmt: skip
