"""Measure the pieces of a layer on one core (`cpu_cost_model.PIECES`), each on its own.

A piece runs on many sets of tensors, forward on all of them and then backward, so that its inputs are where a step
leaves them: not all in the cache. `timing` takes the difference of two sizes, which removes the fixed cost of a call.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from altup_moe.altup.kernels import kernel
from altup_moe.altup.token_mixing import TokenPass, Write
from altup_moe.plan.calibrate.timing import (
    LARGE,
    SMALL,
    PieceFactory,
    PieceWithInputs,
    call_seconds,
    forward_backward_seconds,
    input_sets,
    nanoseconds_per_number,
)
from altup_moe.plan.cpu_cost_model import ForwardBackward

ATTENTION_SETS = 4
"""Sets of queries, keys and values that a measurement of attention goes through."""


def _norm(numbers: int) -> PieceWithInputs:
    x = torch.randn(numbers // 256, 256)
    return lambda x, w: F.rms_norm(x, w.shape, w, 1e-5), [x, torch.ones(256)]


def _rotary(numbers: int) -> PieceWithInputs:
    t = torch.randn(numbers // 512, 2, 8, 32)
    angles = torch.randn(numbers // 512, 1, 1, 32)

    def rotate(t: Tensor) -> Tensor:
        first, second = t.chunk(2, dim=-1)
        turned = t * torch.cos(angles) + torch.cat((-second, first), dim=-1) * torch.sin(angles)
        return torch.cat((turned, t[..., 32:]), dim=-1)

    return rotate, [t]


def _gate(numbers: int) -> PieceWithInputs:
    def gate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return F.silu(first) * second

    return gate, [torch.randn(numbers // 512, 1024)]


def _weigh(numbers: int) -> PieceWithInputs:
    return lambda x, p: x * p.unsqueeze(-1), [torch.randn(numbers // 256, 256), torch.randn(numbers // 256)]


def _copy(numbers: int) -> PieceWithInputs:
    return lambda x: x.permute(1, 2, 0, 3).contiguous(), [torch.randn(numbers // 512, 2, 8, 32)]


def _permute(numbers: int) -> PieceWithInputs:
    rows = numbers // 512
    order = torch.randperm(2 * rows) % rows
    spread = order[:, None].expand(-1, 256)

    def permute_and_restore(x: Tensor) -> Tensor:
        return torch.zeros(rows, 256).scatter_add(0, spread, x.index_select(0, order))

    return permute_and_restore, [torch.randn(rows, 256)]


def _attention(head: int) -> PieceFactory:
    """Causal attention of `samples` sequences of 256 tokens: 8 heads of `head` channels; keys and values have 4."""

    def piece(samples: int) -> PieceWithInputs:
        q, k, v = (torch.randn(256, samples, heads, head).permute(1, 2, 0, 3) for heads in (8, 4, 4))
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), [q, k, v]

    return piece


def attention_ns() -> dict[str, ForwardBackward]:
    """`score` and `channel`, from heads of 32 and of 64 channels and from one and four samples."""
    found = []
    for head in (32, 64):
        piece = _attention(head)
        one, four = (forward_backward_seconds([piece(samples) for _ in range(ATTENTION_SETS)]) for samples in (1, 4))
        found.append([1e9 * (b - a) / (3 * 8 * 256 * 256 / 2) for a, b in zip(one, four, strict=True)])
    channel = [max(1e-4, (wide - narrow) / 32) for narrow, wide in zip(*found, strict=True)]
    score = [max(1e-4, narrow - 32 * more) for narrow, more in zip(found[0], channel, strict=True)]
    return {"score": (score[0], score[1]), "channel": (channel[0], channel[1])}


def mixing_ns() -> dict[str, ForwardBackward]:
    """`mix` and `mix_more`: the pass over the stream and the axpy after it, from two and four blocks."""
    plain = kernel("torch", torch.device("cpu"))
    one = torch.randn(1, 2)

    def forward(sets: list[tuple[Tensor, Tensor]], weights: Tensor) -> None:
        for x, y in sets:
            plain.forward(x, (y,), weights), plain.forward(x[:1], (y,), one)

    def backward(sets: list[tuple[Tensor, Tensor]], weights: Tensor) -> None:
        for x, y in sets:
            plain.backward(x, (), x, (y,), weights)
            # The gradient of the block that the layer reads, and that of the axpy.
            x[0].add_(y, alpha=1e-9)
            torch.dot(x[0], y), plain.forward(x[:1], (y,), one)

    found = []
    for width in (2, 4):
        weights, spent = torch.randn(width, width + 1), []
        for columns in (SMALL, LARGE):
            sets = [(torch.randn(width, columns), torch.randn(columns)) for _ in range(input_sets(2 * columns))]
            spent.append([call_seconds(work, sets, weights) / len(sets) for work in (forward, backward)])
        read = (width + 1) * (LARGE - SMALL)
        found.append([1e9 * (b - a) / read for a, b in zip(*spent, strict=True)])
    more = [(four - two) / 2 for two, four in zip(*found, strict=True)]
    base = [two - 2 * m for two, m in zip(found[0], more, strict=True)]
    return {"mix": (base[0], base[1]), "mix_more": (more[0], more[1])}


TOKEN_WIDTH = 4
"""Blocks of the measured passes with weights of every token."""


def _token_mix(numbers: int) -> PieceWithInputs:
    plain, tokens = kernel("torch", torch.device("cpu")), numbers // 256
    weights = torch.randn(TOKEN_WIDTH, TOKEN_WIDTH, tokens)
    return lambda x, w: TokenPass.apply(x, None, w, plain), [torch.randn(TOKEN_WIDTH, tokens, 256), weights]


def _token_write(numbers: int) -> PieceWithInputs:
    plain, tokens = kernel("torch", torch.device("cpu")), numbers // 256
    inputs = [torch.randn(TOKEN_WIDTH, tokens, 256), torch.randn(tokens, 256), torch.randn(TOKEN_WIDTH, tokens)]
    return lambda x, y, g: Write.apply(x, y, g, plain), inputs


def token_ns() -> dict[str, ForwardBackward]:
    """`token_mix` and `token_write`, of K blocks whose tensors have as many numbers each as the other pieces'."""
    each = {"token_mix": (_token_mix, TOKEN_WIDTH**2), "token_write": (_token_write, TOKEN_WIDTH)}
    found = {}
    for name, (piece, per_number) in each.items():
        forward, backward = nanoseconds_per_number(piece)
        found[name] = forward / per_number, backward / per_number
    return found


def logit_ns() -> ForwardBackward:
    """`logit`: cross-entropy as Megatron computes it, in place but for the largest logit."""
    rows = [LARGE // 2048, 8 * LARGE // 2048]

    def forward(x: Tensor) -> None:
        x -= x.max(dim=-1)[0].unsqueeze(-1)
        torch.exp(x, out=x)
        x.div_(x.sum(dim=-1).unsqueeze(-1))

    def backward(x: Tensor) -> None:
        x.mul_(torch.ones(len(x), 1))

    found = []
    for work in (forward, backward):
        few, many = (call_seconds(work, torch.randn(n, 2048)) for n in rows)
        found.append(max(1e-4, 1e9 * (many - few) / (7 * LARGE)))
    return found[0], found[1]


def parameter_ns() -> dict[str, ForwardBackward]:
    """`gradient` and `update`, on 2^22 parameters, which no cache holds."""
    weights, grads = (torch.randn(2**22) * 1e-3 for _ in range(2))
    small = torch.randn(2**16)
    optimizer = torch.optim.AdamW([weights.requires_grad_()], fused=True)
    weights.grad = torch.zeros_like(weights)

    def gradient() -> None:
        for piece in grads.split(2**16):
            piece.add_(small)

    def update() -> None:
        assert weights.grad is not None
        weights.grad.zero_()
        grads.sum()
        grads.mul_(0.999)
        weights.grad.copy_(grads)
        torch.linalg.vector_norm(grads)
        grads.mul_(0.999)
        optimizer.step()

    each = 1e9 / len(weights)
    return {"gradient": (0.0, each * call_seconds(gradient)), "update": (each * call_seconds(update), 0.0)}


def add_ns() -> ForwardBackward:
    """`add`: a residual sum. Its backward adds two gradients, so it takes the same time."""

    def add(sets: list[Tensor]) -> list[Tensor]:
        return [a + b for a, b in sets]

    def seconds(numbers: int) -> float:
        sets = [torch.randn(2, numbers) for _ in range(input_sets(numbers))]
        return call_seconds(add, sets) / len(sets)

    few, many = seconds(SMALL), seconds(LARGE)
    each = max(1e-4, 1e9 * (many - few) / (LARGE - SMALL))
    return each, each


def pieces_ns() -> dict[str, ForwardBackward]:
    """All of `cpu_cost_model.PIECES`, nanoseconds a number."""
    autograd: dict[str, PieceFactory] = {
        "norm": _norm, "rotary": _rotary, "gate": _gate, "weigh": _weigh, "copy": _copy, "permute": _permute,
    }  # fmt: skip
    found = {name: nanoseconds_per_number(piece) for name, piece in autograd.items()}
    found |= {**attention_ns(), **mixing_ns(), **token_ns()}
    return {**found, "add": add_ns(), "logit": logit_ns(), **parameter_ns()}
