"""Every implementation of the one pass against its definition in float64, and what each promises beside."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters

from altup_moe.altup.kernels import Kernel, kernel
from tests.unit.altup.implementations import CPU, TRITON_DEVICE

ROOT = Path(__file__).parents[3]
TYPES = [torch.float32, torch.bfloat16]


@dataclass(frozen=True)
class Case:
    """d [R', N] and the gradients of single rows; x [K, N] and the outputs to write; W [R, C]."""

    d: Tensor
    ds: tuple[Tensor, ...]
    x: Tensor
    ys: tuple[Tensor, ...]
    w: Tensor

    def backward(self, k: Kernel) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        return k.backward(self.d, self.ds, self.x, self.ys, self.w)


def case(blocks: int, form: str, ys: int, n: int, dtype: torch.dtype, seed: int, device: torch.device = CPU) -> Case:
    """``form``: what comes out, "blocks", so many rows of their own ("one", "two"), or both ("blocks and one")."""
    generator = torch.Generator().manual_seed(seed)
    rows, ds = {
        "blocks": (blocks, 0), "one": (1, 0), "two": (1, 1),
        "blocks and one": (blocks, 1), "blocks and two": (blocks, 2),
    }[form]  # fmt: skip

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    d, x = randn(rows, n), randn(blocks, n)
    singles = [tuple(randn(n) for _ in range(count)) for count in (ds, ys)]
    w = torch.randn(rows + ds, blocks + ys, generator=generator).to(device)
    return Case(d, singles[0], x, singles[1], w)


def check(k: Kernel, c: Case) -> None:
    """Compare every number of both passes with float64."""
    blocks, dtype = c.x.shape[0], c.x.dtype
    # Triton's interpreter cuts fp32 off to bf16, a GPU rounds.
    ulps = 1.0 if k.name == "triton" and c.x.device == CPU else 0.5
    inputs = (c.d, *c.ds, c.x, *c.ys, c.w)
    given = [tensor.clone() for tensor in inputs]
    out = k.forward(c.x, c.ys, c.w)
    d_x, d_ys, d_w = c.backward(k)
    assert out._base is None, "no view"
    for before, after in zip(given, inputs, strict=True):
        assert torch.equal(before, after), "inputs are left alone"
    all_x, d64 = (
        torch.cat([rows, *(row[None] for row in singles)]).double() for rows, singles in ((c.x, c.ys), (c.d, c.ds))
    )
    w64 = c.w.double()
    d_in, size = w64.t() @ d64, w64.t().abs() @ d64.abs()
    close(out, w64 @ all_x, w64.abs() @ all_x.abs(), dtype, ulps)
    close(d_x, d_in[:blocks], size[:blocks], dtype, ulps)
    close(d_w, d64 @ all_x.t(), d64.abs() @ all_x.abs().t(), torch.float32, ulps)
    for d_y, wanted, largest in zip(d_ys, d_in[blocks:], size[blocks:], strict=True):
        close(d_y, wanted, largest, dtype, ulps)


def close(got: Tensor, wanted: Tensor, size: Tensor, dtype: torch.dtype, ulps: float) -> None:
    """fp32: 1e-6 of the magnitudes that were added up. bf16: also one rounding at the end, of the result itself."""
    assert got.shape == wanted.shape
    assert got.dtype == dtype
    limit = 1e-6 * size + ulps * 2**-7 * wanted.abs() * (dtype == torch.bfloat16)
    assert ((got.double() - wanted).abs() <= limit).all(), ((got.double() - wanted).abs() - limit).max()


FORMS = ["blocks", "blocks and one", "blocks and two", "one", "two"]


@settings(max_examples=60)
@given(
    blocks=st.integers(1, 8),
    form=st.sampled_from(FORMS),
    ys=st.integers(0, 2),
    n=st.integers(1, 300),
    dtype=st.sampled_from(TYPES),
    seed=st.integers(0, 2**31),
)
def test_equals_the_definition(
    light: tuple[Kernel, torch.device], blocks: int, form: str, ys: int, n: int, dtype: torch.dtype, seed: int
) -> None:
    k, device = light
    check(k, case(blocks, form, ys, n, dtype, seed, device))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocks", "form", "ys", "dtype"),
    [
        (4, "blocks and two", 2, torch.float32),  # around branches, two steps in a pass
        (4, "blocks and one", 1, torch.bfloat16),
        (3, "one", 0, torch.float32),
    ],
)
def test_compiled_equals_the_definition(compiled: Kernel, blocks: int, form: str, ys: int, dtype: torch.dtype) -> None:
    """Whole pieces, a ragged end, shorter than a piece: one compilation of each pass, whatever asks for gradients."""
    before = counters["stats"]["unique_graphs"]
    for n in (8192, 12345, 4096 * 5, 1001):
        check(compiled, case(blocks, form, ys, n, dtype, n))
    c = case(blocks, form, ys, 9000, dtype, 0)
    compiled.forward(c.x.requires_grad_(), c.ys, c.w.requires_grad_())
    assert counters["stats"]["unique_graphs"] == before + 2


def test_coefficient_gradient_is_the_slope(light: tuple[Kernel, torch.device]) -> None:
    """d_W against finite differences of forward: linear in W, so a large step has no error but rounding."""
    k, device = light
    c = case(2, "blocks and two", 2, 200, torch.float32, 0, device)
    d_w, d = c.backward(k)[2], torch.cat([c.d, *(row[None] for row in c.ds)]).double()
    for row in range(4):
        for column in range(4):
            step = torch.zeros_like(c.w)
            step[row, column] = 1
            slope = ((k.forward(c.x, c.ys, c.w + step) - k.forward(c.x, c.ys, c.w - step)).double() * d).sum() / 2
            assert d_w[row, column].item() == pytest.approx(slope.item(), abs=1e-4)


def test_triton_gives_the_same_bits_again() -> None:
    k = kernel("triton", TRITON_DEVICE)
    c = case(4, "blocks and two", 2, 2000, torch.bfloat16, 0, TRITON_DEVICE)
    results = [[d_x, *d_ys, d_w] for d_x, d_ys, d_w in (c.backward(k) for _ in range(3))]
    for again in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], again, strict=True))


PTX = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from altup_moe.altup.kernels import triton_kernels as t

def ptx(kernel, half, **sizes):
    signature = {}
    for name in kernel.arg_names:
        half_type = half and name not in ("w_ptr", "sums_ptr")
        signature[name] = "constexpr" if name in sizes else "i32" if name == "n" else "*bf16" if half_type else "*fp32"
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind != "constexpr"}
    source = ASTSource(kernel, signature, sizes, aligned)
    options = {"num_warps": t.BACKWARD_WARPS, **t.OPTIONS}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]

for half in (False, True):
    for k, ys, first, ds in ((4, 1, 4, 1), (2, 0, 1, 0), (4, 2, 4, 2)):
        sizes = {"K": k, "YS": ys, "BLOCK": t.BACKWARD_BLOCK}
        forward = ptx(t._forward_kernel.fn, half, R=first + ds, **sizes)
        for text in (forward, ptx(t._backward_kernel, half, FIRST=first, DS=ds, **sizes)):
            print(text.count("ld.global.v4"), text.count("st.global.v4"), text.count("atom."), text.count("red.global"))
"""


@pytest.mark.slow
def test_triton_compiles_for_a_gpu_with_wide_accesses(tmp_path: Path) -> None:
    """What the interpreter cannot show. 8 columns a thread are two accesses of 16 bytes for fp32, one for bf16."""
    result = run(PTX, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    found = [tuple(map(int, line.split())) for line in result.stdout.splitlines()]
    # (rows read, rows written) of forward and backward: every row once, and no atomics.
    rows = [(5, 5), (10, 5), (2, 1), (3, 2), (6, 6), (12, 6)]
    assert found == [(size * read, size * written, 0, 0) for size in (2, 1) for read, written in rows]


def run(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.slow
def test_without_a_compiler_or_triton_the_setting_is_named(tmp_path: Path) -> None:
    code = """
import sys, torch
from altup_moe.altup.kernels import kernel
cpu = torch.device("cpu")
assert kernel("auto", cpu).name == "torch"
assert not {"triton", "torch._dynamo", "torch._inductor"} & set(sys.modules), "loaded only when asked for"
try:
    kernel("compile", cpu).forward(torch.ones(2, 100), (), torch.ones(2, 2))
except RuntimeError as error:
    print(error)
sys.modules["triton"] = None
try:
    kernel("triton", cpu)
except RuntimeError as error:
    print(error)
"""
    result = run(code, CXX="/nowhere/g++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    no_compiler, no_triton = result.stdout.splitlines()
    assert "altup.kernel=compile" in no_compiler
    assert "altup.kernel=torch needs none" in no_compiler
    assert "altup.kernel=triton: triton is not installed" in no_triton
