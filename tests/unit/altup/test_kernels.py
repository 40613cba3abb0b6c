"""Every implementation of the one pass against its definition in float64, and what each promises beside."""

from __future__ import annotations

import os
import subprocess
import sys
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


def case(
    blocks: int, rows: int, has_y: bool, n: int, dtype: torch.dtype, seed: int, device: torch.device = CPU
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """(d [R, N], x [K, N], y [N] or None, W [R, C])."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    d, x, w = randn(rows, n), randn(blocks, n), randn(rows, blocks + has_y)
    y = randn(n).to(device, dtype) if has_y else None
    return d.to(device, dtype), x.to(device, dtype), y, w.to(device)


def check(k: Kernel, d: Tensor, x: Tensor, y: Tensor | None, w: Tensor) -> None:
    """Compare every number of both passes with float64."""
    blocks, dtype = x.shape[0], x.dtype
    # Triton's interpreter cuts fp32 off to bf16, a GPU rounds.
    ulps = 1.0 if k.name == "triton" and x.device == CPU else 0.5
    given = [tensor.clone() for tensor in (d, x, w)]
    out = k.forward(x, y, w)
    d_x, d_y, d_w = k.backward(d, x, y, w)
    assert out._base is None, "no view"
    for before, after in zip(given, (d, x, w), strict=True):
        assert torch.equal(before, after), "inputs are left alone"
    all_x = (x if y is None else torch.cat([x, y[None]])).double()
    d64, w64 = d.double(), w.double()
    d_in = w64.t() @ d64
    size = w64.t().abs() @ d64.abs()
    close(out, w64 @ all_x, w64.abs() @ all_x.abs(), dtype, ulps)
    close(d_x, d_in[:blocks], size[:blocks], dtype, ulps)
    close(d_w, d64 @ all_x.t(), d64.abs() @ all_x.abs().t(), torch.float32, ulps)
    assert (d_y is None) == (y is None)
    if d_y is not None:
        close(d_y, d_in[blocks], size[blocks], dtype, ulps)


def close(got: Tensor, wanted: Tensor, size: Tensor, dtype: torch.dtype, ulps: float) -> None:
    """fp32: 1e-6 of the magnitudes that were added up. bf16: also one rounding at the end, of the result itself."""
    assert got.shape == wanted.shape
    assert got.dtype == dtype
    limit = 1e-6 * size + ulps * 2**-7 * wanted.abs() * (dtype == torch.bfloat16)
    assert ((got.double() - wanted).abs() <= limit).all(), ((got.double() - wanted).abs() - limit).max()


@settings(max_examples=50)
@given(
    blocks=st.integers(1, 8),
    form=st.sampled_from(["square", "one more", "one"]),
    has_y=st.booleans(),
    n=st.integers(1, 300),
    dtype=st.sampled_from(TYPES),
    seed=st.integers(0, 2**31),
)
def test_equals_the_definition(
    light: tuple[Kernel, torch.device], blocks: int, form: str, has_y: bool, n: int, dtype: torch.dtype, seed: int
) -> None:
    k, device = light
    rows = {"square": blocks, "one more": blocks + 1, "one": 1}[form]
    check(k, *case(blocks, rows, has_y, n, dtype, seed, device))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocks", "rows", "has_y", "dtype"),
    [(4, 5, True, torch.float32), (4, 5, True, torch.bfloat16), (3, 1, False, torch.float32)],
)
def test_compiled_equals_the_definition(
    compiled: Kernel, blocks: int, rows: int, has_y: bool, dtype: torch.dtype
) -> None:
    """Whole pieces, a ragged end, shorter than a piece: one compilation of each pass, whatever asks for gradients."""
    before = counters["stats"]["unique_graphs"]
    for n in (8192, 12345, 4096 * 5, 1001):
        check(compiled, *case(blocks, rows, has_y, n, dtype, n))
    _, x, y, w = case(blocks, rows, has_y, 9000, dtype, 0)
    compiled.forward(x.requires_grad_(), y, w.requires_grad_())
    assert counters["stats"]["unique_graphs"] == before + 2


def test_coefficient_gradient_is_the_slope(light: tuple[Kernel, torch.device]) -> None:
    """d_W against finite differences of forward: linear in W, so a large step has no error but rounding."""
    k, device = light
    d, x, y, w = case(3, 4, True, 200, torch.float32, 0, device)
    d_w = k.backward(d, x, y, w)[2]
    for r in range(4):
        for c in range(4):
            step = torch.zeros_like(w)
            step[r, c] = 1
            slope = ((k.forward(x, y, w + step) - k.forward(x, y, w - step)).double() * d.double()).sum() / 2
            assert d_w[r, c].item() == pytest.approx(slope.item(), abs=1e-4)


def test_triton_gives_the_same_bits_again() -> None:
    k = kernel("triton", TRITON_DEVICE)
    values = case(4, 5, True, 2000, torch.bfloat16, 0, TRITON_DEVICE)
    first = k.backward(*values)
    for _ in range(2):
        assert all(torch.equal(a, b) for a, b in zip(first, k.backward(*values), strict=True))


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
    for sizes in ({"K": 4, "HAS_Y": True, "R": 5}, {"K": 2, "HAS_Y": False, "R": 1}):
        for kernel in (t._forward_kernel.fn, t._backward_kernel):
            text = ptx(kernel, half, BLOCK=t.BACKWARD_BLOCK, **sizes)
            print(text.count("ld.global.v4"), text.count("st.global.v4"), text.count("atom."), text.count("red.global"))
"""


@pytest.mark.slow
def test_triton_compiles_for_a_gpu_with_wide_accesses(tmp_path: Path) -> None:
    """What the interpreter cannot show. 8 columns a thread are two accesses of 16 bytes for fp32, one for bf16."""
    result = run(PTX, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    found = [tuple(map(int, line.split())) for line in result.stdout.splitlines()]
    # (rows read, rows written) of forward and backward: every row once, and no atomics.
    rows = [(5, 5), (10, 5), (2, 1), (3, 2)]
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
    kernel("compile", cpu).forward(torch.ones(2, 100), None, torch.ones(2, 2))
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
