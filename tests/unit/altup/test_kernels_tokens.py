"""The pass with a matrix for each token: every implementation against its definition in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code

from altup_moe.altup.kernels import Kernel
from tests.unit.altup.implementations import CPU
from tests.unit.altup.test_kernels import TYPES, close, run

FORMS = ["square", "one more", "one"]


def rows_of(form: str, blocks: int) -> int:
    return {"square": blocks, "one more": blocks + 1, "one": 1}[form]


def case(
    blocks: int,
    rows: int,
    has_y: bool,
    shape: tuple[int, int],
    dtype: torch.dtype,
    seed: int = 0,
    device: torch.device = CPU,
    gaps: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """(d [R, T, D], x [K, T, D], y [T, D] or None, W [R, C, T]). ``gaps``: no tensor is contiguous."""
    generator = torch.Generator().manual_seed(seed)
    tokens, features = shape

    def randn(*lengths: int) -> Tensor:
        if not gaps:
            return torch.randn(*lengths, generator=generator)
        *first, last = lengths
        return torch.randn(last + 1, *first, 2, generator=generator)[1:, ..., 1].movedim(0, -1)

    d, x = (randn(count, tokens, features).to(device, dtype) for count in (rows, blocks))
    y = randn(tokens, features).to(device, dtype) if has_y else None
    return d, x, y, randn(rows, blocks + has_y, tokens).to(device)


def check(k: Kernel, d: Tensor, x: Tensor, y: Tensor | None, w: Tensor) -> None:
    """Compare every number of both passes with float64."""
    blocks, dtype = x.shape[0], x.dtype
    # Triton's interpreter cuts fp32 off to bf16, a GPU rounds.
    ulps = 1.0 if k.name == "triton" and x.device == CPU else 0.5
    given = [tensor.clone() for tensor in (d, x, w)]
    out = k.token_forward(x, y, w)
    d_x, d_y, d_w = k.token_backward(d, x, y, w)
    assert out._base is None, "no view"
    for before, after in zip(given, (d, x, w), strict=True):
        assert torch.equal(before, after), "inputs are left alone"
    d64, w64, all_x = d.double(), w.double(), (x if y is None else torch.cat([x, y[None]])).double()

    def both(formula: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The sums, and those of magnitudes."""
        return torch.einsum(formula, a, b), torch.einsum(formula, a.abs(), b.abs())

    close(out, *both("rct,ctd->rtd", w64, all_x), dtype, ulps)
    d_in, size = both("rct,rtd->ctd", w64, d64)
    close(d_x, d_in[:blocks], size[:blocks], dtype, ulps)
    close(d_w, *both("rtd,ctd->rct", d64, all_x), torch.float32, ulps)
    if y is not None and len(d) >= blocks:
        added = w[:blocks, blocks]  # [K, T], as g
        products = (added.double()[..., None] * y.double(), x.double())
        close(k.token_write(x, y, added), sum(products), sum(p.abs() for p in products), dtype, ulps)
    assert (d_y is None) == (y is None)
    if d_y is not None:
        close(d_y, d_in[blocks], size[blocks], dtype, ulps)


@settings(max_examples=15)
@given(
    blocks=st.integers(1, 8),
    form=st.sampled_from(FORMS),
    has_y=st.booleans(),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 80)),
    dtype=st.sampled_from(TYPES),
    seed=st.integers(0, 2**31),
    gaps=st.booleans(),
)
def test_equals_the_definition(
    light: tuple[Kernel, torch.device],
    blocks: int,
    form: str,
    has_y: bool,
    shape: tuple[int, int],
    dtype: torch.dtype,
    seed: int,
    gaps: bool,
) -> None:
    k, device = light
    check(k, *case(blocks, rows_of(form, blocks), has_y, shape, dtype, seed, device, gaps))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("blocks", [1, 8])
def test_ragged_tiles_of_the_narrowest_and_the_widest(
    light: tuple[Kernel, torch.device], blocks: int, form: str
) -> None:
    k, device = light
    check(k, *case(blocks, rows_of(form, blocks), True, (9, 67), torch.float32, device=device))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("blocks", "rows", "has_y", "dtype"), [(2, 3, True, torch.float32), (3, 1, False, torch.bfloat16)]
)
def test_compiled_equals_the_definition(
    compiled: Kernel, blocks: int, rows: int, has_y: bool, dtype: torch.dtype
) -> None:
    """One compilation of each pass for all numbers of tokens, strides, and whatever asks for gradients; and the same
    bits again."""
    before = counters["stats"]["unique_graphs"]
    for tokens in (64, 37, 5):
        check(compiled, *case(blocks, rows, has_y, (tokens, 83), dtype, gaps=tokens == 37))
    d, x, y, w = case(blocks, rows, has_y, (20, 83), dtype)
    first, again = compiled.token_backward(d, x, y, w), compiled.token_backward(d, x, y, w)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True) if a is not None)
    compiled.token_forward(x.requires_grad_(), y, w.requires_grad_())
    # Of a single row no write is checked.
    assert counters["stats"]["unique_graphs"] == before + (3 if rows > 1 else 2)


@pytest.mark.long
def test_compiled_is_one_loop_over_tokens(compiled: Kernel) -> None:
    """Inductor by itself begins another loop after 16 of the 30 results of K = 4. Another width D is right too."""
    values = case(4, 5, True, (64, 96), torch.float32)
    for function, args in ((compiled.token_forward, values[1:]), (compiled.token_backward, values)):
        _, codes = run_and_get_code(function, *args)
        assert [code.count("for(int64_t x0=") for code in codes] == [1]
    check(compiled, *case(4, 5, True, (31, 45), torch.float32))


def test_the_same_bits_again(light: tuple[Kernel, torch.device]) -> None:
    k, device = light
    values = case(4, 5, True, (12, 130), torch.bfloat16, device=device)
    first = k.token_forward(*values[1:]), *k.token_backward(*values)
    again = k.token_forward(*values[1:]), *k.token_backward(*values)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_one_matrix_for_all_tokens_is_the_other_pass(light: tuple[Kernel, torch.device]) -> None:
    """W repeated for every token: the same numbers as of `forward` and `backward`, d_W summed over tokens."""
    k, device = light
    d, x, y, w = case(3, 4, True, (6, 40), torch.float32, device=device)
    w = w[:, :, :1].expand_as(w)
    out, grads = k.token_forward(x, y, w), k.token_backward(d, x, y, w)
    flat = x.flatten(1), (y.flatten(),), w[:, :, 0].contiguous()
    torch.testing.assert_close(out.flatten(1), k.forward(*flat))
    d_x, d_ys, d_w = k.backward(d.flatten(1), (), *flat)
    torch.testing.assert_close((grads[0].flatten(1), grads[1].flatten()), (d_x, *d_ys))
    torch.testing.assert_close(grads[2].sum(-1), d_w, rtol=1e-5, atol=1e-5)


PTX = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from altup_moe.altup.kernels import triton_tokens as t

def ptx(kernel, half, **sizes):
    signature = {}
    for name in kernel.arg_names:
        half_type = half and name not in ("w_ptr", "d_w_ptr")
        integer = not name.endswith("ptr")
        signature[name] = "constexpr" if name in sizes else "i32" if integer else "*bf16" if half_type else "*fp32"
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind != "constexpr"}
    source = ASTSource(kernel, signature, sizes, aligned)
    options = {"num_warps": t.BACKWARD_WARPS, **t.OPTIONS}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]

for half, wide in ((False, "v4"), (True, "v2")):
    for sizes in ({"K": 4, "HAS_Y": True, "R": 5}, {"K": 2, "HAS_Y": False, "R": 1}):
        for kernel in (t._forward_kernel.fn, t._backward_kernel):
            text = ptx(kernel, half, **t.BACKWARD_TILE, **sizes)
            counts = text.count("ld.global." + wide), text.count("st.global." + wide)
            print(*counts, text.count("atom."), text.count("red.global"))
"""


@pytest.mark.slow
def test_triton_compiles_for_a_gpu_with_wide_accesses(tmp_path: Path) -> None:
    """What the interpreter cannot show. A thread's 4 features are one access: of 16 bytes for fp32, of 8 for bf16."""
    result = run(PTX, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    found = [tuple(map(int, line.split())) for line in result.stdout.splitlines()]
    # (rows read, rows written) of forward and backward: every row once, and no atomics.
    assert found == [(read, written, 0, 0) for read, written in [(5, 5), (10, 5), (2, 1), (3, 2)]] * 2
