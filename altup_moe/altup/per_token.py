"""Streams whose weights are computed for every token from the stream itself: hyper-connections of 2026.

A step stands around one branch F of a layer (altup.level branch), which adds no residual of its own:

    u = r X,  y = F(u),  X' = M X + g (x) y

and r [K], M [K, K] and g [K] follow from X in R^{K x d} by a small network. `z` is X flattened and divided by its root
mean square over all K d features; s are learned scales, b learned biases, Q a learned matrix.

| variant | r | M | g | source |
|---|---|---|---|---|
| `mhc` | sigmoid(s Q z + b) | Sinkhorn(s Q z + b) transposed | 2 sigmoid(s Q z + b) | DeepSeek-V4, GLM-5-next |
| `mhc_single_pass` | as mhc's, but used by the NEXT step | as mhc | as mhc | DeepSeek-V4.1 |
| `independent_hc` | sigmoid(s Q z + b) | I | 2 sigmoid(s Q z + b) | Hunyuan V4 |
| `gated_residual` | not a sum of blocks, see below | I | 2 sigmoid(W n / K) | Qwen4-exp |

Sinkhorn makes M doubly stochastic: all rows and columns sum to 1, so that a deep stack neither grows nor forgets the
stream (arXiv 2512.24880). In `gated_residual` n are the blocks, each normed by itself, and u is the mean over the
blocks of sigmoid(A silu(B n / K)) * n, a gate for every feature.

At the end of a recycled stream `mhc` and `independent_hc` collapse the blocks with a read of their own,
`gated_residual` with a gate of its own, and `mhc_single_pass` with what its last step has computed. The first read of
`mhc_single_pass` is block 0.

Sources: transformers 5.23, `DeepseekV4HyperConnection`, `HYV4HyperConnection`, `Qwen4ExpTextGatedResidual` and their
heads; for V4.1 NVIDIA-NeMo/Automodel's pull 3855. Initial values: the scales s start at 0, where the papers have 0.01
(mHC, Hunyuan) or 1 (DeepSeek-V4's code), and biases as in those. So a recycled `mhc`, `mhc_single_pass` or
`independent_hc` is the plain Transformer at step 0, for all blocks are equal, r is the same for all of them and a
branch norms its input. `gated_residual` starts as Qwen's, with random gates, which only resembles the plain one.

Shape legend: K blocks, T = S*B tokens, D width of a block, R = D/8 rank of the gate. Everything here is computed in
fp32 (float64 stays).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from altup_moe.altup.dynamic import at_least_fp32
from altup_moe.altup.kernels import PLAIN, Kernel
from altup_moe.altup.sinkhorn import sinkhorn
from altup_moe.altup.step_costs import SINKHORN_ITERATIONS
from altup_moe.altup.token_mixing import Projecting, Projection

FLOOR = 1e-6
"""`hc_eps` of all of them: what is added to reads, to the matrix before it is normed, and to its sums."""


@dataclass(frozen=True)
class Writing:
    """What a step needs once its output is there. ``mix``: M [K to, K from, T]; None is I. ``write``: g [K, T]."""

    mix: Tensor | None
    write: Tensor


@dataclass(frozen=True)
class Connection:
    """The weights of one step, fp32.

    ``stream``: X [K, T, D] for the pass of the step, and for no other use. ``read``: r [K, T], where the step's input
    is not read from this stream; else None. ``u`` [T, D]: the step's input. ``writing``: computes the rest, which no
    input of a branch needs: it may run later.
    """

    stream: Tensor
    read: Tensor | None
    u: Tensor | None
    writing: Callable[[], Writing]


def mhc(x_KTD: Tensor, c: Mapping[str, Tensor], eps: float, kernel: Kernel = PLAIN) -> Connection:
    """Manifold-constrained hyper-connections.

    Args:
        x_KTD: the stream. c: coefficients by name. eps: of the norm. kernel: the implementation of what is large.
    """
    stream, u, rest_NT = _project(x_KTD, c, eps, kernel)
    return Connection(stream, None, u, _manifold(rest_NT, c, len(x_KTD), kernel))


def mhc_single_pass(x_KTD: Tensor, c: Mapping[str, Tensor], eps: float, kernel: Kernel = PLAIN) -> Connection:
    """`mhc` whose ``read`` is the next step's. Arguments as there."""
    stream, read_KT, rest_NT = _project(x_KTD, c, eps, kernel, reads=False)
    return Connection(stream, read_KT, None, _manifold(rest_NT, c, len(x_KTD), kernel))


def _manifold(rest_NT: Tensor, c: Mapping[str, Tensor], k: int, kernel: Kernel) -> Callable[[], Writing]:
    """The weights of mixing and writing of logits [K + K K, T]."""

    def writing() -> Writing:
        _, write, mix = c["scale"]
        write_KT, mix_NT = rest_NT.split([k, k * k])
        logits_KKT = (mix_NT * mix).view(k, k, -1) + c["mix_bias"][..., None]
        # Sinkhorn's matrix says where block i goes to; M says where block j comes from.
        comb_KKT = sinkhorn(logits_KKT, SINKHORN_ITERATIONS, FLOOR, kernel)
        return Writing(comb_KKT.transpose(0, 1), 2 * torch.sigmoid(write_KT * write + c["write_bias"][:, None]))

    return writing


def independent_hc(x_KTD: Tensor, c: Mapping[str, Tensor], eps: float, kernel: Kernel = PLAIN) -> Connection:
    """Hyper-connections that do not mix the blocks. Arguments as in `mhc`."""
    stream, u, write_KT = _project(x_KTD, c, eps, kernel, mixes=False)

    def writing() -> Writing:
        return Writing(None, 2 * torch.sigmoid(write_KT * c["scale"][1] + c["write_bias"][:, None]) + FLOOR)

    return Connection(stream, None, u, writing)


def gated_residual(x_KTD: Tensor, c: Mapping[str, Tensor], eps: float, kernel: Kernel = PLAIN) -> Connection:
    """A gate for every feature of every block, and a scalar for what is written to it. Arguments as in `mhc`; all is
    torch's."""
    normed_KTD = _normed_blocks(x_KTD, c["norm"], eps)

    def writing() -> Writing:
        return Writing(None, 2 * torch.sigmoid(_over_blocks(normed_KTD, c["inject"]).t() / x_KTD.shape[0]))

    return Connection(x_KTD, None, _gated_mean(normed_KTD, c), writing)


def read_collapse(x_KTD: Tensor, c: Mapping[str, Tensor], eps: float) -> Tensor:
    """The end of an `mhc` or `independent_hc` stream: [T, D]. Arguments as in `mhc`."""
    return _project(x_KTD, c, eps, PLAIN)[1]


def gated_collapse(x_KTD: Tensor, c: Mapping[str, Tensor], eps: float) -> Tensor:
    """The end of a `gated_residual` stream: [T, D]. Arguments as in `mhc`."""
    return _gated_mean(_normed_blocks(x_KTD, c["norm"], eps), c)


def _project(
    x_KTD: Tensor, c: Mapping[str, Tensor], eps: float, kernel: Kernel, reads: bool = True, mixes: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """(X for the pass, u = r X [T, D] or r [K, T], the other logits [N - K, T]). Q z = (Q x) / rms(x): z is never
    formed."""
    k, _, d = x_KTD.shape

    def weighting(products_NT: Tensor, squares_T: Tensor, scale: Tensor, read_bias: Tensor) -> tuple[Tensor, Tensor]:
        logits_NT = products_NT * torch.rsqrt(squares_T / (k * d) + eps)
        return torch.sigmoid(logits_NT[:k] * scale[0] + read_bias[:, None]) + FLOOR, logits_NT[k:]

    how = Projecting(weighting, reads, mixes, kernel)
    return Projection.apply(how, x_KTD, c["project"], c["scale"], c["read_bias"])


def _normed_blocks(x_KTD: Tensor, norm: Tensor, eps: float) -> Tensor:
    x_KTD = at_least_fp32(x_KTD)
    k, _, d = x_KTD.shape
    return F.rms_norm(x_KTD, (d,), None, eps) * norm.view(k, 1, d)


def _gated_mean(normed_KTD: Tensor, c: Mapping[str, Tensor]) -> Tensor:
    k, _, d = normed_KTD.shape
    inner_TR = F.silu(_over_blocks(normed_KTD, c["gate_down"]) / k)
    up_KDR = c["gate_up"].view(k, d, -1)
    gates = (torch.sigmoid(inner_TR @ up.t()) * normed for up, normed in zip(up_KDR, normed_KTD, strict=True))
    return sum(gates) / k


def _over_blocks(x_KTD: Tensor, matrix: Tensor) -> Tensor:
    """A matrix [N, K*D] times the K*D features of each token: [T, N]."""
    k, _, d = x_KTD.shape
    return torch.einsum("ktd,nkd->tn", x_KTD, matrix.view(-1, k, d))
