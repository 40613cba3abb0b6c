"""Small inputs of every command: text, a study of two rows, a finished study, and a recipe with its questions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from altup_moe.config.shipped import CONFIGS

TEXT = "the cat sat on the mat, the dog lay on the log, and the bird flew over the house.\n"
WORDS = ("cat", "dog", "bird", "mat", "log", "house")
SIZES = {"hidden_size": 32, "ffn_hidden_size": 48, "num_attention_heads": 2, "num_query_groups": 2, "num_layers": 2}


def write_inputs(home: Path) -> None:
    """Write them into a directory."""
    (home / "text.txt").write_text("".join(f"{number} {TEXT}" for number in range(300)))
    (home / "study.yaml").write_text(yaml.safe_dump(_study()))
    shutil.copytree(CONFIGS / "study" / "results" / "moe_capacity", home / "study")
    (home / "recipe.yaml").write_text(yaml.safe_dump(_recipe()))
    (home / "squad").mkdir()
    rows = [
        {"question": f"Where is the {word}?", "context": TEXT, "answers": {"text": [word, "the " + word]}}
        for word in WORDS
    ]
    for split in ("train", "validation"):
        (home / "squad" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def _study() -> dict[str, Any]:
    train = {"micro_batch_size": 2, "global_batch_size": 2, "eval_interval": 0, "eval_samples": 4}
    return {
        "base": {
            "model": {**SIZES, "seq_length": 16, "vocab_size": 320},
            "data": {"corpus": "python-docs"},
            "optim": {"warmup_steps": 1},
            "train": train,
        },
        "seeds": [1],
        "budget": {"tokens": 64},
        "rows": [
            {"name": "dense", "set": {"altup.width": 1}},
            {"name": "altup-k2", "family": "altup", "set": {"altup.width": 2}},
        ],
        "measure": {"train_steps": 2, "warmup": 1, "rounds": 1, "prompts": 2, "decode_tokens": 4},
    }


def _recipe() -> dict[str, Any]:
    """The shipped recipe, with a model, text and questions that need seconds."""
    content = yaml.safe_load((CONFIGS / "paper_tiny.yaml").read_text(encoding="utf-8"))
    content["seeds"] = [3]
    content["evaluate"] = {"task": "squad", "limit": 5}
    pretrain, steps = content["pretrain"], content["finetune"]
    pretrain["model"] |= {**SIZES, "seq_length": 32, "decoder_seq_length": 12, "vocab_size": 512}
    pretrain["data"] = {"corpus": "python-docs", "sentinels": 20}
    pretrain["train"] |= {"steps": 2, "micro_batch_size": 2, "global_batch_size": 2, "eval_samples": 2}
    for step in steps:
        step["data"] = {"mixture": ["squad"], "task_files": {"squad": "squad"}, "corpus": "python-docs"}
        step["train"] = {"steps": 2, "eval_samples": 2}
    for part in (pretrain, *steps):
        part["optim"] = {**part.get("optim", {}), "warmup_steps": 1}
    return content
