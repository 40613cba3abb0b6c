"""Attention as a layer calls it: whether torch takes its flash kernel, and whether that is right.

The flash kernel is forced, and compared with what torch chooses by itself and with whole scores in fp64.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from altup_moe.bench.gpu.results import Figure, Found
from altup_moe.bench.gpu.sizes import Shape, Sizes, run_of
from altup_moe.config import MoEConfig, RunConfig
from altup_moe.model.build import build_model
from altup_moe.parallel.topology import Topology, topology

CHANNELS = (64, 128)
"""Head sizes."""
HEADS = 4
OFF = 0.01
"""Root of the mean squared difference over that of the values, at most: a few roundings of bf16, 2^-9 each."""


def attention(sizes: Sizes) -> Found:
    """For each head size, with as many key groups as heads and with half of them: outputs and gradients."""
    found = Found()
    with topology(RunConfig().parallel) as topo:
        for channels in CHANNELS:
            for groups in (HEADS, HEADS // 2):
                name = f"{HEADS} heads of {channels}, {groups} of keys"
                found.figures += compared(name, sizes.small, channels, groups, topo)
    return found


def compared(name: str, shape: Shape, channels: int, groups: int, topo: Topology) -> list[Figure]:
    """The figures of one layer's attention on a micro-batch of random queries, keys and values in bf16."""
    core = _core(shape, channels, groups, topo)
    generator = torch.Generator().manual_seed(channels + groups)
    sizes = [(shape.seq, shape.samples, heads, channels) for heads in (HEADS, groups, groups)]
    given = [torch.randn(size, generator=generator).to(topo.device, torch.bfloat16) for size in sizes]
    chosen, ran = _run(core, given, forced=False)
    flash, _ = _run(core, given, forced=True)
    exact = _in_fp64(core.scale, given)
    off = max(_apart(one, other) for one, other in zip(flash, exact, strict=True))
    # Gradients of queries are added up in no certain order on a GPU.
    same = max(_apart(one, other) for one, other in zip(flash, chosen, strict=True))
    return [
        Figure(f"{name}: flash kernel, off from fp64", off, at_most=OFF, exact=True),
        Figure(
            f"{name}: flash kernel's output is that of torch's choice", torch.equal(flash[0], chosen[0]), at_least=1
        ),
        Figure(f"{name}: flash kernel, off from torch's choice with gradients", same, at_most=OFF, exact=True),
        Figure(f"{name}: torch chooses a flash kernel", any("flash" in operation for operation in ran), at_least=1),
    ]


def _core(shape: Shape, channels: int, groups: int, topo: Topology) -> Any:
    """The attention of a layer, without its projections."""
    run = replace(run_of(shape), moe=MoEConfig())
    model = replace(run.model, num_layers=1, num_attention_heads=HEADS, num_query_groups=groups, kv_channels=channels)
    (chunk,) = build_model(replace(run, model=model), topo)
    return chunk.module.decoder.layers[0].self_attention.core_attention.train()


class _Operations(TorchDispatchMode):
    """The names of operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def _run(core: Any, given: list[Tensor], forced: bool) -> tuple[list[Tensor], set[str]]:
    """(output and the gradients of its weighted sum, names of operations)."""
    inputs = [tensor.detach().requires_grad_() for tensor in given]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if forced else nullcontext(), _Operations() as ran:
        out = core(*inputs)
        grads = torch.autograd.grad(out, inputs, _weights(out))
    return [out.detach(), *grads], {name for name in ran.names if "attention" in name}


def _weights(out: Tensor) -> Tensor:
    values = torch.linspace(-1, 1, out.numel(), dtype=torch.float64, device=out.device)
    return values.view(out.shape).to(out.dtype)


def _in_fp64(scale: float | None, given: list[Tensor]) -> list[Tensor]:
    """The same from whole scores [B, H, S, S]."""
    inputs = [tensor.double().requires_grad_() for tensor in given]
    query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in inputs)
    key, value = (one.repeat_interleave(query.shape[1] // one.shape[1], dim=1) for one in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    out = (scores.masked_fill(later, float("-inf")).softmax(-1) @ value).permute(2, 0, 1, 3).flatten(2)
    grads = torch.autograd.grad(out, inputs, _weights(out))
    return [out.detach(), *grads]


def _apart(one: Tensor, other: Tensor) -> float:
    """Root of the mean squared difference over the root of the mean square."""
    return float((one.double() - other.double()).norm() / other.double().norm())
