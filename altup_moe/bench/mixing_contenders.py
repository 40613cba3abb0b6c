"""What takes turns in `altup-moe bench mixing`: a plain copy, our passes, and others by autograd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from altup_moe.altup.kernels import kernel
from altup_moe.bench.mixing_rivals import Update, rivals
from altup_moe.bench.options import MixingBench

CPU = torch.device("cpu")


@dataclass(frozen=True)
class MixingContender:
    """One implementation of the pass. `both` runs forward and backward."""

    forward: Callable[[], object]
    both: Callable[[], object]


def mixing_contenders(bench: MixingBench, width: int, exponent: int, dtype: torch.dtype) -> dict[str, MixingContender]:
    """All contenders of one setting on the same tensors, the copy first."""
    generator, n = torch.Generator().manual_seed(0), 2**exponent
    x_KN, y_N, d_RN = (
        torch.randn(*shape, generator=generator).to(dtype) for shape in ((width, n), (n,), (width + 1, n))
    )
    w_RC = torch.randn(width + 1, width + 1, generator=generator)
    found = {"copy": copy_of(width, n, dtype)}
    found |= {name: _ours(name, d_RN, x_KN, y_N, w_RC) for name in bench.kernels}
    if bench.rivals:
        shape = (1, n // bench.hidden_size, bench.hidden_size)
        x, y, d = x_KN.view(width, *shape), y_N.view(shape), d_RN[:width].view(width, *shape)
        for name, (update, parameters) in rivals(width, bench.hidden_size, dtype).items():
            found[name] = by_autograd(update, parameters, x, y, d)
    return found


def copy_of(width: int, n: int, dtype: torch.dtype, device: torch.device = CPU) -> MixingContender:
    """A copy that moves 2 (K + 1) blocks forward and 3 (K + 1) backward."""
    blocks = width + 1
    source, target = (make(3 * blocks * n // 2, dtype=dtype, device=device) for make in (torch.ones, torch.zeros))

    def forward() -> None:
        target[: blocks * n].copy_(source[: blocks * n])

    def both() -> None:
        forward()
        target.copy_(source)

    return MixingContender(forward, both)


def _ours(name: str, d_RN: Tensor, x_KN: Tensor, y_N: Tensor, w_RC: Tensor) -> MixingContender:
    k = kernel(name, x_KN.device)

    def both() -> object:
        return k.forward(x_KN, (y_N,), w_RC), k.backward(d_RN, (), x_KN, (y_N,), w_RC)

    return MixingContender(lambda: k.forward(x_KN, (y_N,), w_RC), both)


def by_autograd(update: Update, parameters: list[Tensor], x: Tensor, y: Tensor, d: Any) -> MixingContender:
    """``d``: gradients of what `update` returns."""
    x_leaf, y_leaf = x.detach().requires_grad_(), y.detach().requires_grad_()

    def forward() -> object:
        with torch.no_grad():
            return update(x, y)

    def both() -> object:
        out = update(x_leaf, y_leaf)
        outputs, grads = (out, list(d)) if isinstance(out, list) else (out, d.view_as(out))
        return torch.autograd.grad(outputs, [x_leaf, y_leaf, *parameters], grads)

    return MixingContender(forward, both)
