"""The shipped configurations of published sizes: their parameters are the models', and their layouts fit the memory."""

from __future__ import annotations

import json

import pytest

from altup_moe.cli import main
from altup_moe.config.checks import check_config
from altup_moe.config.load import load_config
from altup_moe.config.shipped import CONFIGS

LLAMA_2_7B, MIXTRAL_8X7B = 6_738_415_616, 46_702_792_704
"""Numbers in the published weights (meta-llama/Llama-2-7b-hf, mistralai/Mixtral-8x7B-v0.1)."""
STREAM = ["altup.width=2"]
ON_ONE_NODE = ["parallel.tensor=4", "parallel.pipeline=1"]
"""Flags that the file's first lines name."""

SIZES = [
    ("llama_7b", "h100x8", 1, [], LLAMA_2_7B),
    ("llama_7b", "h100x8", 8, [], LLAMA_2_7B),
    # Each layer mixes with K x K numbers and writes with K.
    ("llama_7b", "h100x8", 1, STREAM, LLAMA_2_7B + 32 * (2 * 2 + 2)),
    ("mixtral_8x7b", "h100x8", 8, [], MIXTRAL_8X7B),
    ("mixtral_8x7b", "h100x8", 8, STREAM, MIXTRAL_8X7B + 32 * (2 * 2 + 2)),
    ("mixtral_8x7b", "h200x8", 1, ON_ONE_NODE, MIXTRAL_8X7B),
]


@pytest.mark.parametrize(("name", "cluster", "nodes", "changes", "parameters"), SIZES)
def test_parameters_and_memory(
    capsys: pytest.CaptureFixture[str], name: str, cluster: str, nodes: int, changes: list[str], parameters: int
) -> None:
    file = CONFIGS / f"{name}.yaml"
    check_config(load_config(file, [f"--{word}" for word in changes]), 8 * nodes)
    words = [
        str(file),
        "--cluster",
        cluster,
        "--nodes",
        str(nodes),
        "--json",
        *(["--set", *changes] if changes else []),
    ]
    assert main(["plan", *words]) == 0, "it does not fit"
    assert json.loads(capsys.readouterr().out)["parameters"]["total"] == parameters


def test_the_smaller_memory_does_not_hold_mixtral_on_one_node(capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(CONFIGS / "mixtral_8x7b.yaml"), "--cluster", "h100x8", "--set", *ON_ONE_NODE]
    assert main(["plan", *words]) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_the_files_name_the_flags_that_are_tested() -> None:
    text = (CONFIGS / "mixtral_8x7b.yaml").read_text(encoding="utf-8")
    assert " ".join("--" + word.replace("=", " ") for word in ON_ONE_NODE) in text
    for name in ("llama_7b", "mixtral_8x7b"):
        assert "--altup.width 2" in (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
