"""Share of a card's peak that experts' products reach, by their size; and the card's own rates.

The planner has one efficiency for all products. It was fitted to runs with large experts; small ones reach less.
"""

from __future__ import annotations

import torch

from altup_moe.bench.gpu.memory import name_of
from altup_moe.bench.gpu.results import Figure, Found
from altup_moe.bench.gpu.sizes import ExpertShape, Sizes
from altup_moe.bench.gpu.timing import Call, interleaved_medians
from altup_moe.moe.grouped import choose, grouped_mlp

PRODUCTS = 9
"""Products of rows x hidden x inner width: gate, up and down, forward once and backward twice."""


def efficiency(sizes: Sizes) -> Found:
    """Rates of experts over that of a large product, forward and backward."""
    device = torch.device(sizes.device)
    rates = _rates(sizes, device)
    found = Found(data={"rates": rates, "sizes": name_of(sizes)})
    found.figures = [
        Figure(f"a product of {sizes.product} in bf16", rates["bf16_flops"] / 1e12, "TFLOP/s"),
        Figure(f"a product of {sizes.product} in fp32", rates["fp32_flops"] / 1e12, "TFLOP/s"),
        Figure("a copy, read and written", rates["copy_bytes"] / 1e9, "GB/s"),
    ]
    curve = []
    for shape in (sizes.large_expert, sizes.small_expert, *sizes.expert_curve):
        flops = expert_flops(shape, sizes.repeats, device)
        share = flops / rates["bf16_flops"]
        curve.append({"shape": vars(shape), "flops": flops, "share": share})
        found.figures.append(Figure(f"{shape.name}: share of the large product's rate", share))
    found.data |= {"curve": curve, "large_expert": curve[0]["share"], "small_expert": curve[1]["share"]}
    return found


def _rates(sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Operations a second of large products, bytes a second of a large copy."""
    n = sizes.product
    halves, floats = (torch.randn(n, n, device=device).to(dtype) for dtype in (torch.bfloat16, torch.float32))
    source = torch.zeros(sizes.copied // 4, device=device)
    target = torch.empty_like(source)
    calls: dict[str, Call] = {
        "bf16": lambda: halves @ halves,
        "fp32": lambda: floats @ floats,
        "copy": lambda: target.copy_(source),
    }
    seconds = interleaved_medians(calls, sizes.repeats, device)
    flops = 2.0 * n**3
    return {
        "bf16_flops": flops / seconds["bf16"],
        "fp32_flops": flops / seconds["fp32"],
        "copy_bytes": 2.0 * sizes.copied / seconds["copy"],
    }


def expert_flops(shape: ExpertShape, repeats: int, device: torch.device) -> float:
    """Operations a second of experts that get the same number of rows each, bf16, forward and backward."""
    rows, dtype = shape.experts * shape.rows, torch.bfloat16
    x = torch.randn(rows, shape.hidden, device=device).to(dtype).requires_grad_()
    probs = torch.rand(rows, device=device).requires_grad_()
    fc1 = (0.02 * torch.randn(shape.experts * 2 * shape.ffn, shape.hidden, device=device)).to(dtype).requires_grad_()
    fc2 = (0.02 * torch.randn(shape.experts * shape.hidden, shape.ffn, device=device)).to(dtype).requires_grad_()
    grad = torch.randn_like(x)
    counts = [shape.rows] * shape.experts
    how = choose(device, dtype, shape.hidden, shape.ffn)

    def both() -> tuple[torch.Tensor, ...]:
        out = grouped_mlp(x, probs, fc1, fc2, counts, how)
        return torch.autograd.grad(out, [x, probs, fc1, fc2], grad)

    (seconds,) = interleaved_medians({"both": both}, repeats, device).values()
    return 2.0 * PRODUCTS * rows * shape.hidden * shape.ffn / seconds
