"""The mixing passes as a share of the bandwidth that a plain copy reaches, beside other code for the same work.

Bytes are those that the work needs, in blocks of N numbers. Ours: forward C = K + 1 read, R = K + 1 written (the next
stream and the next layer's input); backward R + C read, C written. Others make the next stream alone: forward K + 1
read, K written; backward 2 K + 1 read, K + 1 written.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from altup_moe.altup.kernels import kernel
from altup_moe.bench.gpu.interpreted import NOT_REHEARSED, runs_token_gradients
from altup_moe.bench.gpu.jobs import in_a_line
from altup_moe.bench.gpu.kernels import DTYPES
from altup_moe.bench.gpu.mixing_rivals import RIVALS
from altup_moe.bench.gpu.results import Figure, Found
from altup_moe.bench.gpu.sizes import Sizes
from altup_moe.bench.gpu.timing import Call, interleaved_medians

FORWARD_GOAL, BACKWARD_GOAL = 0.85, 0.75
COPY = "copy"


@dataclass(frozen=True)
class Blocks:
    """A stream and what belongs to it, on the device. x [K, T, D], outputs and gradients [T, D]."""

    x_KTD: Tensor
    rows_TD: tuple[Tensor, ...]
    """Four of them: outputs of two steps, and gradients of two single rows."""
    d_KTD: Tensor


@dataclass(frozen=True)
class Pass:
    """One contender. Blocks that forward and backward must move."""

    forward: Call
    backward: Call
    forward_blocks: int
    backward_blocks: int


def mixing(sizes: Sizes) -> Found:
    """Shares of the copy's bandwidth, for K = 2 and 4 and both types."""
    device, found = torch.device(sizes.device), Found()
    rivals = {name: make for name, (package, make) in RIVALS.items() if importlib.util.find_spec(package)}
    found.notes += [f"{name} is not installed" for name in RIVALS if name not in rivals]
    ours = dict(OURS)
    if not runs_token_gradients(device):
        del ours[EACH_TOKEN]
        found.notes.append(NOT_REHEARSED)
    for width in (2, 4):
        for name, dtype in DTYPES.items():
            blocks = _blocks(width, sizes.mixing_shape, dtype, device)
            passes = {each: make(blocks) for each, make in ours.items()}
            for rival, make in rivals.items():
                try:
                    forward, backward = make(blocks.x_KTD, blocks.rows_TD[0], blocks.d_KTD)
                    passes[rival] = Pass(forward, backward, 2 * width + 1, 3 * width + 2)
                except Exception as problem:
                    # Another library's own trouble, which must not cost our figures.
                    found.notes.append(f"{rival}, K = {width}, {name}: {in_a_line(problem)}")
            found.figures += _figures(f"K = {width}, {name}", passes, blocks, sizes, found.notes)
    return found


def _blocks(width: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Blocks:
    generator = torch.Generator(device).manual_seed(0)

    def draw(*first: int) -> Tensor:
        return torch.randn(*first, *shape, generator=generator, device=device).to(dtype)

    return Blocks(draw(width), tuple(draw() for _ in range(4)), draw(width))


def _columns(blocks: Blocks, outputs: int) -> Pass:
    """One matrix for all tokens: one step, or two that share a pass. As many single rows come out as outputs go in."""
    width = blocks.x_KTD.shape[0]
    x, d = blocks.x_KTD.view(width, -1), blocks.d_KTD.view(width, -1)
    ys, ds = (tuple(row.view(-1) for row in blocks.rows_TD[first : first + outputs]) for first in (0, 2))
    w, k = torch.randn(width + outputs, width + outputs, device=x.device), kernel("triton", x.device)
    count = width + outputs
    return Pass(lambda: k.forward(x, ys, w), lambda: k.backward(d, ds, x, ys, w), 2 * count, 3 * count)


def _tokens(blocks: Blocks) -> Pass:
    width, tokens, _ = blocks.x_KTD.shape
    x, y, k = blocks.x_KTD, blocks.rows_TD[0], kernel("triton", blocks.x_KTD.device)
    d = torch.cat([blocks.d_KTD, blocks.rows_TD[2][None]])
    w, count = torch.randn(width + 1, width + 1, tokens, device=x.device), width + 1
    return Pass(lambda: k.token_forward(x, y, w), lambda: k.token_backward(d, x, y, w), 2 * count, 3 * count)


EACH_TOKEN = "a matrix for each token"
OURS: dict[str, Callable[[Blocks], Pass]] = {
    "one matrix": lambda blocks: _columns(blocks, 1),
    "two steps in a pass": lambda blocks: _columns(blocks, 2),
    EACH_TOKEN: _tokens,
}


def _figures(where: str, passes: dict[str, Pass], blocks: Blocks, sizes: Sizes, notes: list[str]) -> list[Figure]:
    """Time all contenders in turns, the copy among them; one that fails is left out, with a note."""
    x, device = blocks.x_KTD, blocks.x_KTD.device
    block_bytes = x[0].numel() * x.element_size()
    source = torch.cat([x, blocks.d_KTD])
    target = torch.empty_like(source)
    calls: dict[str, Call] = {COPY: lambda: target.copy_(source)}
    for name, one in list(passes.items()):
        try:
            one.forward()
            one.backward()
        except Exception as problem:
            if name in OURS:
                raise
            notes.append(f"{name}, {where}: {in_a_line(problem)}")
            del passes[name]
            continue
        calls |= {f"{name} forward": one.forward, f"{name} backward": one.backward}
    seconds = interleaved_medians(calls, sizes.repeats, device)
    rate = 2 * source.numel() * source.element_size() / seconds[COPY]
    figures = [Figure(f"{where}: copy, read and written", rate / 1e9, "GB/s")]
    for name, one in passes.items():
        for part, moved, goal in (
            ("forward", one.forward_blocks, FORWARD_GOAL),
            ("backward", one.backward_blocks, BACKWARD_GOAL),
        ):
            share = moved * block_bytes / seconds[f"{name} {part}"] / rate
            at_least = goal if name in OURS else None
            figures.append(Figure(f"{where}: {name}, {part}: share of the copy", share, at_least=at_least))
    return figures
