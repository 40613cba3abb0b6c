"""Triton's kernels against their definition in float64, and against themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import torch
from torch import Tensor

from altup_moe.altup.kernels import kernel
from altup_moe.bench.gpu.interpreted import NOT_REHEARSED, runs_token_gradients
from altup_moe.bench.gpu.jobs import run_job
from altup_moe.bench.gpu.memory import name_of
from altup_moe.bench.gpu.results import Figure, Found
from altup_moe.bench.gpu.sizes import SIZES, Sizes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
FORMS = {"blocks": (None, 0), "blocks and one": (None, 1), "blocks and two": (None, 2), "one": (1, 0), "two": (1, 1)}
"""What comes out: (rows that follow each other, None is K; single rows), as every kind of step asks for."""
ROUNDS = 3
"""Backward passes that must have the same bits."""


@dataclass(frozen=True)
class KernelCase:
    """One specialisation of a kernel. ``kind``: columns (one matrix) or tokens (a matrix for each)."""

    kind: str
    width: int
    rows: int
    singles: int
    outputs: int
    dtype: str


@dataclass
class Worst:
    """Largest errors over what is allowed (-1: nothing was run), and passes whose bits differ between runs."""

    forward: float = -1.0
    backward: float = -1.0
    other_bits: int = 0
    cases: int = 0

    def add(self, other: Worst) -> None:
        """The worse of both, and the sums."""
        self.forward, self.backward = max(self.forward, other.forward), max(self.backward, other.backward)
        self.other_bits, self.cases = self.other_bits + other.other_bits, self.cases + other.cases


def kernel_cases(sizes: Sizes) -> list[KernelCase]:
    """All of them, each once: of K = 1 some forms are the same."""
    return list(dict.fromkeys(_cases(sizes)))


def _cases(sizes: Sizes) -> Iterator[KernelCase]:
    for width, (rows, singles), outputs, dtype in product(sizes.widths, FORMS.values(), (0, 1, 2), DTYPES):
        yield KernelCase("columns", width, rows or width, singles, outputs, dtype)
    for width, outputs, dtype in product(sizes.widths, (0, 1), DTYPES):
        for rows in sorted({1, width, width + 1}):
            yield KernelCase("tokens", width, rows, 0, outputs, dtype)


def kernels(sizes: Sizes) -> Found:
    """The worst over all cases, by kind and type. Several processes share them, since each case is compiled."""
    totals: dict[str, Worst] = {}
    for part in run_job("kernels", name_of(sizes), min(sizes.kernel_workers, os.cpu_count() or 1)):
        for name, worst in part.items():
            totals.setdefault(name, Worst()).add(Worst(**worst))
    found = Found()
    for name, worst in sorted(totals.items()):
        for what in ("forward", "backward") if worst.backward >= 0 else ("forward",):
            text = f"{name}, {what}: largest error over what rounding allows, {worst.cases} cases"
            found.figures.append(Figure(text, getattr(worst, what), at_most=1.0, exact=True))
        if worst.backward >= 0:
            text = f"{name}: backward passes with other bits"
            found.figures.append(Figure(text, worst.other_bits, at_most=0, exact=True))
    if sizes.device == "cpu":
        found.notes.append("Run by Triton's interpreter, which cuts bf16 off where a GPU rounds.")
    if not runs_token_gradients(torch.device(sizes.device)):
        found.notes.append(NOT_REHEARSED)
    return found


def worker(argument: str, directory: str) -> dict[str, dict[str, Any]]:
    """One process's share of the cases, by kind and type."""
    sizes, rank, size = SIZES[argument], int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device(sizes.device)
    totals: dict[str, Worst] = {}
    for case in kernel_cases(sizes)[rank::size]:
        name = f"{'one matrix' if case.kind == 'columns' else 'a matrix for each token'}, {case.dtype}"
        totals.setdefault(name, Worst()).add(check_case(case, sizes, device))
    return {name: {f.name: getattr(worst, f.name) for f in fields(worst)} for name, worst in totals.items()}


def check_case(case: KernelCase, sizes: Sizes, device: torch.device) -> Worst:
    """The worst over all sizes."""
    worst = Worst()
    if case.kind == "columns":
        for numbers in sizes.block_numbers:
            worst.add(_columns(case, numbers, device))
    else:
        for shape in sizes.block_shapes:
            worst.add(_tokens(case, shape, device))
    worst.cases = 1
    return worst


def _columns(case: KernelCase, numbers: int, device: torch.device) -> Worst:
    draw = _Draw(case, device)
    d, x = draw(case.rows, numbers), draw(case.width, numbers)
    ds, ys = (tuple(draw(numbers) for _ in range(count)) for count in (case.singles, case.outputs))
    w = draw(case.rows + case.singles, case.width + case.outputs, dtype=torch.float32)
    k = kernel("triton", device)
    out = k.forward(x, ys, w)
    rounds = [k.backward(d, ds, x, ys, w) for _ in range(ROUNDS)]
    d_x, d_ys, d_w = rounds[0]
    x64, d64 = (torch.cat([rows, *(one[None] for one in singles)]).double() for rows, singles in ((x, ys), (d, ds)))
    got = torch.cat([d_x, *(one[None] for one in d_ys)])
    forward = draw.error(out, "rc,cn->rn", w.double(), x64)
    backward = draw.error(got, "rc,rn->cn", w.double(), d64), draw.error(d_w, "rn,cn->rc", d64, x64)
    return Worst(forward, max(backward), _other_bits([[a, *b, c] for a, b, c in rounds]))


def _tokens(case: KernelCase, shape: tuple[int, int], device: torch.device) -> Worst:
    draw = _Draw(case, device)
    d, x = draw(case.rows, *shape), draw(case.width, *shape)
    y = draw(*shape) if case.outputs else None
    w = draw(case.rows, case.width + case.outputs, shape[0], dtype=torch.float32)
    k = kernel("triton", device)
    out = k.token_forward(x, y, w)
    x64 = (x if y is None else torch.cat([x, y[None]])).double()
    forward = [draw.error(out, "rct,ctd->rtd", w.double(), x64)]
    if y is not None:
        g = draw(case.width, shape[0], dtype=torch.float32)
        eye = torch.eye(case.width, device=device)[..., None].expand(-1, -1, shape[0])
        written = torch.cat([eye, g[:, None]], dim=1).double()
        forward.append(draw.error(k.token_write(x, y, g), "rct,ctd->rtd", written, x64))
    if not runs_token_gradients(device):
        return Worst(max(forward))
    rounds = [k.token_backward(d, x, y, w) for _ in range(ROUNDS)]
    d_x, d_y, d_w = rounds[0]
    got = d_x if d_y is None else torch.cat([d_x, d_y[None]])
    backward = draw.error(got, "rct,rtd->ctd", w.double(), d.double()), draw.error(d_w, "rtd,ctd->rct", d.double(), x64)
    bits = [[one for one in each if one is not None] for each in rounds]
    return Worst(max(forward), max(backward), _other_bits(bits))


class _Draw:
    """Random tensors of a case, and how far a result of them may be off."""

    def __init__(self, case: KernelCase, device: torch.device) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._dtype, self._device = DTYPES[case.dtype], device

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, generator=self._generator).to(self._device, dtype or self._dtype)

    def error(self, got: Tensor, formula: str, a: Tensor, b: Tensor) -> float:
        """The largest error over 1e-6 of the magnitudes that were added up, and one rounding of a bf16 result: half a
        unit on a GPU, a whole one in the interpreter. Infinite where a result is no number."""
        wanted, size = torch.einsum(formula, a, b), torch.einsum(formula, a.abs(), b.abs())
        allowed = 1e-6 * size
        if got.dtype == torch.bfloat16:
            allowed += (0.5 if self._device.type == "cuda" else 1.0) * 2**-7 * wanted.abs()
        off = (got.double() - wanted).abs()
        over = torch.where(off == 0, 0.0, off / allowed)
        return float(over.nan_to_num(nan=float("inf")).max())


def _other_bits(rounds: list[list[Tensor]]) -> int:
    """Passes after the first one that gave other bits."""
    return sum(not all(torch.equal(a, b) for a, b in zip(rounds[0], other, strict=True)) for other in rounds[1:])
