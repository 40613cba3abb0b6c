"""What computes the weights of every token: the C++ code and the definition against float64, and whole steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from altup_moe.altup import per_token
from altup_moe.altup.kernels import PLAIN, Kernel
from altup_moe.altup.kernels.compiled_weights import CHUNK, PIECE
from altup_moe.altup.sinkhorn import sinkhorn
from altup_moe.altup.token_mixing import mix_and_write
from tests.unit.altup.test_kernels import run

EPS = 1e-6
# (K, T, D, rows of Q): ragged tiles of tokens and rows, several pieces, and K = 8 with its 80 rows.
SHAPES = [(1, 1, CHUNK, 3), (2, 37, 2 * CHUNK, 8), (4, PIECE + 77, CHUNK, 24), (8, 21, CHUNK, 80), (3, 18, 40, 15)]


def randn(*lengths: int) -> Tensor:
    return torch.randn(*lengths, generator=torch.Generator().manual_seed(sum(lengths)))


def close(got: Tensor, wanted: Tensor, size: float = 1.0) -> None:
    """fp32 against float64; ``size`` of the sums' magnitudes."""
    assert got.dtype is torch.float32
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5 * size)


@pytest.fixture(scope="session", params=["torch", "compile"])
def either(request: pytest.FixtureRequest) -> Kernel:
    """The C++ code is compiled in two seconds."""
    return PLAIN if request.param == "torch" else request.getfixturevalue("compiled")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_and_their_way_back(either: Kernel, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    k, t, d, n = shape
    x, d_x, u = (randn(*first, t, d).to(dtype) for first in ((k,), (k,), ()))
    project, d_products, d_squares, read = randn(n, k * d), randn(n, t), randn(t), randn(k, t)
    wide, q_NKD = x.double(), project.double().view(n, k, d)
    products, squares = either.project(x, project)
    close(products, torch.einsum("nkd,ktd->nt", q_NKD, wide), (k * d) ** 0.5)
    close(squares, wide.square().sum((0, 2)), k * d)
    close(either.dots(x, u), torch.einsum("ktd,td->kt", wide, u.double()), d**0.5)
    for reads in ((read, u), None):
        got, given = d_x.clone(), x.clone()
        d_project = either.project_backward(got, x, project, d_products, d_squares, reads)
        wanted = d_x.double() + torch.einsum("nt,nkd->ktd", d_products.double(), q_NKD)
        wanted += 2 * d_squares.double()[:, None] * wide
        if reads is not None:
            wanted += read.double()[..., None] * u.double()
        rounding = 0.0 if dtype is torch.float32 else 2**-8 * wanted.abs().max().item()
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5 * n**0.5 + rounding)
        close(d_project, torch.einsum("nt,ktd->nkd", d_products.double(), wide).flatten(1), t**0.5)
        assert torch.equal(x, given), "x is left alone"


def test_gradients_do_not_depend_on_threads(compiled: Kernel) -> None:
    k, t, d, n = 2, 3 * PIECE + 5, CHUNK, 8
    args = randn(k, t, d), randn(n, k * d), randn(n, t), randn(t), None
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            d_x = torch.zeros(k, t, d)
            found.append((*compiled.project(*args[:2]), compiled.project_backward(d_x, *args), d_x))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("width", [*range(1, 10)])
def test_sinkhorn_is_the_definition(compiled: Kernel, width: int) -> None:
    """37 tokens: two full vectors and a ragged one. K = 9 is wider than the C++ code."""
    soft, d = (2 * randn(width, width, 37)).softmax(1), randn(width, 37, width).transpose(1, 2)
    close(compiled.sinkhorn(soft, 20, EPS), PLAIN.sinkhorn(soft.double(), 20, EPS))
    close(
        compiled.sinkhorn_backward(d, soft, 20, EPS),
        PLAIN.sinkhorn_backward(d.double(), soft.double(), 20, EPS),
    )


def test_sinkhorn_keeps_the_softmax_alone() -> None:
    """Autograd would keep K^2 numbers a token for each of 40 steps."""
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        sinkhorn(randn(4, 4, 10).requires_grad_(), 20, EPS)
    assert kept == [4 * 4 * 10]


@pytest.mark.slow
def test_without_a_compiler_the_setting_is_named(tmp_path: Path) -> None:
    code = """
import torch
from altup_moe.altup.kernels import kernel
kernel("compile", torch.device("cpu")).dots(torch.ones(2, 3, 64), torch.ones(3, 64))
"""
    result = run(code, CXX="/nowhere/g++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    assert "altup.kernel=torch needs none" in result.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["mhc", "mhc_single_pass", "independent_hc"])
def test_whole_steps_are_the_definitions(compiled: Kernel, variant: str) -> None:
    """Inputs of the branch, the next stream and every gradient, with the fused code in fp32 and in plain float64."""
    k, t, d = 2, 41, CHUNK
    rows = {"independent_hc": 2 * k}.get(variant, k * (k + 2))
    sizes = {"project": (rows, k * d), "scale": (3,), "read_bias": (k,), "write_bias": (k,), "mix_bias": (k, k)}
    values = {"x": randn(k * t, 1, d), "y": randn(t, 1, d)} | {name: randn(*size) for name, size in sizes.items()}
    values["project"] *= (k * d) ** -0.5
    d_u, d_out, found = randn(t, d), randn(k * t, 1, d).flip(0), []
    for code, dtype in ((compiled, torch.float32), (PLAIN, torch.float64)):
        leaf = {name: value.to(dtype).requires_grad_() for name, value in values.items()}
        connection = getattr(per_token, variant)(leaf["x"].view(k, t, d), leaf, EPS, code)
        first = connection.u if connection.read is None else connection.read
        writing = connection.writing()
        stream = connection.stream.view(k * t, 1, d)
        out = mix_and_write(stream, leaf["y"], writing.mix, writing.write, code)
        given = d_out.to(dtype)
        d_first = d_u.to(dtype) if connection.read is None else d_u[:k, :t].to(dtype).new_ones(k, t)
        used = [value for name, value in leaf.items() if name != "mix_bias" or writing.mix is not None]
        grads = torch.autograd.grad([first, out], used, [d_first, given])
        assert torch.equal(given, d_out.to(dtype)), "a gradient that was given is left alone"
        found.append([first, out, *grads])
    for got, wanted in zip(*found, strict=True):
        difference = (got.double() - wanted).norm() / wanted.norm()
        assert difference < 1e-5, difference
