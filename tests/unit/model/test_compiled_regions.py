"""train.compile: which functions of a step are compiled, and that each gives what the chain of operations gives."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from torch import Tensor

from altup_moe.config import ConfigError, RunConfig, TrainConfig
from altup_moe.device import compiled_functions
from altup_moe.device.regions import region
from altup_moe.model.build import build_chunk, set_weights
from altup_moe.model.norm import rms_norm
from altup_moe.model.rotary import rotate
from altup_moe.model.token_losses import token_losses
from altup_moe.moe.grouped import grouped_mlp
from altup_moe.parallel.topology import Topology
from altup_moe.train.preflight import check_compiler
from tests.distributed.cases import micro_batch, skewed, small

BETWEEN_PRODUCTS = {"rms_norm", "rotate", "_largest", "_sum_exp", "_softmax_times"}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Names of the functions that would have been compiled; they run as they are written."""
    seen: Counter[str] = Counter()

    def run(asked: Any, function: Any, options: Any, *args: Any) -> Any:
        seen[function.__name__] += 1
        return function(*args)

    monkeypatch.setattr(compiled_functions, "run_compiled", run)
    return seen


def step(config: RunConfig, topo: Topology) -> list[Tensor]:
    """Losses [B, S] and every gradient."""
    model = build_chunk(config, topo, None).train()
    set_weights([model], config, topo, skewed)
    losses = model(*micro_batch(config, 0))
    losses.mean().backward()
    return [losses.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("chunk", [None, 5])
def test_the_regions_of_every_layer_are_compiled_if_asked(
    alone: Topology, calls: Counter[str], chunk: int | None
) -> None:
    # Without the schedule's scale for them, balance losses would leave one of Megatron's own to later tests.
    no_losses = {"aux_loss_coeff": 0.0, "z_loss_coeff": 0.0}
    config = small("one", model={"qk_layernorm": True}, moe=no_losses, train={"loss_chunk": chunk})
    expected = step(config, alone)
    assert not calls, "nothing is compiled unless asked for"
    got = step(replace(config, train=replace(config.train, compile=True)), alone)
    assert set(calls) == BETWEEN_PRODUCTS
    layers = config.model.num_layers
    # Two norms a layer, two of queries and keys, the last one; a rotation of queries and one of keys.
    assert (calls["rms_norm"], calls["rotate"]) == (4 * layers + 1, 2 * layers)
    for ours, plain in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)


def test_experts_regions_are_those_of_grouped_products_alone(calls: Counter[str]) -> None:
    counts, leaves = [3, 0, 5], experts(torch.float32)
    grouped_mlp(*leaves, counts, "loop", compiled=True).sum().backward()
    assert not calls
    grouped_mlp(*leaves, counts, "grouped_mm", compiled=True).sum().backward()
    assert calls == {"_gated": 1, "_gated_backward": 1}


def experts(dtype: torch.dtype, rows: int = 8) -> list[Tensor]:
    """Rows, probabilities, fc1 and fc2 of three experts: leaves."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((rows, 16), (rows,), (3 * 48, 16), (3 * 16, 24))
    drawn = [0.3 * torch.randn(*shape, generator=generator) for shape in shapes]
    types = (dtype, torch.float32, dtype, dtype)
    return [tensor.to(kind).requires_grad_() for tensor, kind in zip(drawn, types, strict=True)]


def compare(compiled: list[Tensor], plain: list[Tensor], dtype: torch.dtype) -> None:
    """fp32 to rounding; in bf16 the compiled ones round once, the others after each operation."""
    rtol, atol = (2e-5, 2e-6) if dtype is torch.float32 else (3e-2, 1e-2)
    for one, other in zip(compiled, plain, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def gradients(result: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    return [result, *torch.autograd.grad(result, leaves, weight)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_code_gives_what_the_operations_give(alone: Topology, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    x, weight = leaf(6, 2, 40), leaf(40)
    norms = [gradients(region(how, rms_norm, x, weight, 1e-5), [x, weight]) for how in (True, False)]
    compare(*norms, dtype)

    t, config = leaf(6, 2, 3, 8), small("one")
    angles = RotaryEmbedding(8, rotary_percent=1.0, use_cpu_initialization=True, cp_group=alone.groups.cp)(6)
    of_layers = build_chunk(config, alone, None).config
    ours = region(True, rotate, t, angles.cos().to(dtype), angles.sin().to(dtype))
    theirs = apply_rotary_pos_emb(t, angles, of_layers, cp_group=alone.groups.cp)
    compare(gradients(ours, [t]), gradients(theirs, [t]), dtype)

    logits, labels = leaf(6, 2, 50), torch.randint(50, (6, 2), generator=generator)
    losses = [gradients(token_losses(logits.clone(), labels, how), [logits]) for how in (True, False)]
    compare(*losses, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("act", ["silu", "gelu_new"])
def test_compiled_experts_give_what_the_operations_give(act: str) -> None:
    # Other numbers of rows are the same code.
    for rows, counts in ((8, [3, 0, 5]), (11, [1, 10, 0]), (1, [0, 0, 1])):
        found = []
        for compiled in (True, False):
            leaves = experts(torch.float32, rows)
            found.append(gradients(grouped_mlp(*leaves, counts, "grouped_mm", act, compiled), leaves))
        compare(*found, torch.float32)


@pytest.mark.parametrize(("key", "config"), [
    ("train.compile", RunConfig(train=TrainConfig(compile=True))),
    ("altup.kernel", small("one", altup={"width": 2, "kernel": "compile"})),
])  # fmt: skip
def test_a_machine_without_a_compiler_is_told_the_key(
    key: str, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_compiler(config)
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(ConfigError, match=rf"^{key}.*there is no /nowhere/g\+\+ .* would fit$"):
        check_compiler(config)
    check_compiler(RunConfig())
