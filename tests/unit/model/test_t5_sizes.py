"""Parameters of the shipped T5 configurations: those of T5 v1.1, and with AltUp those that its paper counts.

The paper's figures (arXiv 2301.13310, the table of model sizes) are as recalled, and follow from the shapes; XL's are
from the shapes alone.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from altup_moe.config import AltUpConfig, RunConfig
from altup_moe.config.load import load_config
from altup_moe.model.reference.build import reference_model
from altup_moe.parallel.parameter_names import global_shapes

PAPER = AltUpConfig(width=2, recycled=False, cross_attention="wide")
# size: (others, embeddings at both ends), plain and with AltUp
SIZES = {
    "small": ((3.78e7, 3.29e7), (3.99e7, 6.58e7)),
    "base": ((1.98e8, 4.93e7), (2.12e8, 9.87e7)),
    "large": ((7.17e8, 6.58e7), (7.68e8, 1.32e8)),
    "xl": ((2.72e9, 1.32e8), (2.92e9, 2.63e8)),
}


def shipped(size: str) -> RunConfig:
    return load_config(Path(__file__).parents[3] / "configs" / f"t5_{size}.yaml")


def counts(config: RunConfig) -> tuple[int, int]:
    """(parameters of layers and norms, of the embedding and the output layer)."""
    sizes = {name: math.prod(shape) for name, shape in global_shapes(config).items()}
    ends = sum(size for name, size in sizes.items() if name in ("shared.weight", "lm_head.weight"))
    return sum(sizes.values()) - ends, ends


@pytest.mark.parametrize("size", SIZES)
def test_parameters(size: str) -> None:
    config = shipped(size)
    for run, expected in zip((config, replace(config, altup=PAPER)), SIZES[size], strict=True):
        assert tuple(float(f"{count:.2e}") for count in counts(run)) == expected


@pytest.mark.parametrize("size", SIZES)
def test_the_reference_has_the_same_tensors(size: str) -> None:
    config = replace(shipped(size), altup=PAPER)
    with torch.device("meta"):
        model = reference_model(config)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == global_shapes(config)


def test_the_new_parameters_are_coefficients_and_wide_reading() -> None:
    """K (K + 1) coefficients a layer; keys and values of cross-attention, and the last norms, are of K d features."""
    config = shipped("small")
    m, plain, wide = config.model, counts(config)[0], counts(replace(config, altup=PAPER))[0]
    reading = m.num_layers * 2 * m.num_attention_heads * m.head_dim * m.hidden_size
    assert wide - plain == 2 * m.num_layers * 6 + reading + 2 * m.hidden_size
    recycled = replace(config, altup=AltUpConfig(width=2))
    assert counts(recycled)[0] - plain == 2 * m.num_layers * 6
    assert counts(recycled)[1] == counts(config)[1]
