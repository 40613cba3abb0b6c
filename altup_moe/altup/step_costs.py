"""What a step whose weights are computed for every token keeps, moves and multiplies, for the planner.

Counted on the operations of `altup.per_token`, `altup.token_mixing`, `altup.sinkhorn`, `altup.dynamic` and
`model.step_arithmetic`; `tests/distributed/test_plan_memory.py` holds what is kept against what a step's ranks hold.
It imports no torch.

K blocks of D features; R is the rank of a gate. Numbers are fp32 and of one token. ``half``: whether the stream is of
a half type; ``deferred``: whether mixing is deferred.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

from altup_moe.altup.coefficients import gate_rank

SINKHORN_ITERATIONS = 20
"""`hc_sinkhorn_iters` of DeepSeek-V4 and GLM-5-next."""


@dataclass(frozen=True)
class Kept:
    """What autograd keeps.

    ``blocks``: of D features in the stream's dtype. ``numbers``: of a token. ``matrices``: numbers of copies of learned
    matrices, which do not grow with the tokens.
    """

    blocks: int = 0
    numbers: int = 0
    matrices: int = 0


@dataclass(frozen=True)
class Work:
    """Operations of a forward pass.

    Args:
        passes: (R, C, n) of each pass W [x; y] over the stream: R blocks are written, C blocks and n outputs are read.
        writes: passes X + g (x) y, which mix nothing.
        products: (inner, outer) of each product with a learned matrix.
        normed: numbers that are divided by their root mean square.
        gated: numbers that go through a sigmoid and a product.
        copied: numbers that are put in another order.
        moved: numbers that all else reads and writes.
        iterations: passes over the small matrices of all tokens, each of a few calls (Sinkhorn's).
    """

    passes: tuple[tuple[int, int, int], ...] = ()
    writes: int = 0
    products: tuple[tuple[int, int], ...] = ()
    normed: int = 0
    gated: int = 0
    copied: int = 0
    moved: int = 0
    iterations: int = 0

    def __add__(self, other: Work) -> Work:
        """Both."""
        return Work(*map(operator.add, vars(self).values(), vars(other).values()))


@dataclass(frozen=True)
class TokenStep:
    """One step. ``posted`` can run while it communicates, ``waits`` cannot: inline, all of it waits.

    ``kept``: the step's output included, what computes on the block excluded. ``end``: what a chunk of steps keeps of
    the stream that leaves it. ``backward``: what its backward pass holds beside, at once.
    """

    waits: Work
    posted: Work
    kept: Kept
    end: Kept = Kept()
    backward: Kept = Kept()


def manifold_step(k: int, d: int, half: bool, deferred: bool) -> TokenStep:
    """`altup.per_token.mhc`. Deferred: M X and Sinkhorn's iterations are posted."""
    waits = _network(k, d, k * (k + 2)) + Work(((1, k, 0),))
    if deferred:
        posted = _sinkhorn(k) + Work(((k, k, 0),))
        kept = Kept(k + 1, _manifold_numbers(k))
        return TokenStep(waits + Work(writes=1), posted, kept, backward=Kept(numbers=_sinkhorn_again(k)))
    waits += _sinkhorn(k) + Work(((k, k, 1),))
    kept = Kept(k + 1, _manifold_numbers(k) + k * k)
    return TokenStep(waits, Work(), kept, backward=Kept(numbers=_sinkhorn_again(k)))


def single_pass_step(k: int, d: int, half: bool, deferred: bool) -> TokenStep:
    """`altup.per_token.mhc` whose read is the next step's. Deferred: all but an axpy is posted."""
    if not deferred:
        return replace(manifold_step(k, d, half, deferred), end=Kept(k))
    posted = _network(k, d, k * (k + 2)) + _sinkhorn(k) + Work(((k + 1, k, 0),), writes=1)
    # The gradient of the pass's K + 1 rows is the sum of two of that size, of the blocks and of the last row.
    backward = Kept(2 * (k + 1), _sinkhorn_again(k))
    kept = Kept(k + 1, _manifold_numbers(k) + k * (k + 1) + 1)
    return TokenStep(Work(((1, 1, 1),)), posted, kept, backward=backward)


def independent_step(k: int, d: int, half: bool, deferred: bool) -> TokenStep:
    """`altup.per_token.independent_hc`. Deferred: g is posted, K numbers."""
    return TokenStep(_network(k, d, 2 * k) + Work(((1, k, 0),), writes=1), Work(), Kept(k + 1, 6 * k + 1))


def gated_step(k: int, d: int, half: bool, deferred: bool) -> TokenStep:
    """`altup.per_token.gated_residual`. Deferred: g is posted."""
    features, rank = k * d, gate_rank(d)
    # What is moved: the norm's weight, and the sum over the blocks.
    gate = Work(
        writes=1,
        products=((features, rank), (rank, features)),
        normed=features,
        gated=features,
        copied=features,
        moved=6 * features,
    )
    inject = Work(products=((features, k),), copied=features)
    # The stream in fp32, normed, times the weight, a copy for each product with all blocks, the gates.
    kept = Kept(1, 6 * features + 2 * rank + 3 * k, features * (rank + k))
    return TokenStep(gate, inject, kept) if deferred else TokenStep(gate + inject, Work(), kept)


def dynamic_step(k: int, d: int, half: bool, deferred: bool) -> TokenStep:
    """`altup.dynamic.predict` and `correct`, which are never deferred."""
    work = Work(
        ((k, k, 0),),
        products=((d, k), (k, k * k), (d, k), (k, k)),
        normed=2 * d,
        copied=k * d,
        # The sum with the blocks, the corrections and theirs; after both norms weight and scale, and the innovation.
        moved=(3 + 2 + 3) * k * d + 5 * 2 * d + 3 * d,
    )
    # The stream, of both norms three of its forms, and y's innovation. What reads a predicted block holds them all.
    kept = Kept(0 if half else k - 1, k * d + 6 * d + k * k + 3 * k + 2)
    # Blocks and their gradient with a token's side by side, and the product's gradient.
    return TokenStep(work, Work(), kept, backward=Kept(numbers=3 * k * d))


def projection_end(k: int, d: int, half: bool) -> Kept:
    """`altup.dynamic.expand` or `contract`, without the blocks that it reads."""
    return Kept(0, (k - 1) * ((2 + 2 * half) * d + 4))


def read_end(k: int, d: int, half: bool) -> Kept:
    """`altup.per_token.read_collapse`."""
    return Kept(k, 2 * k + 1)


def gated_end(k: int, d: int, half: bool) -> Kept:
    """`altup.per_token.gated_collapse`."""
    features, rank = k * d, gate_rank(d)
    return Kept(0, 5 * features + 2 * rank + k, features * rank)


def _network(k: int, d: int, rows: int) -> Work:
    """`altup.token_mixing.Projection`: a product, and the sum of squares."""
    return Work(products=((k * d, rows),), moved=k * d)


def _manifold_numbers(k: int) -> int:
    """Products and the sum of squares, the read, the other logits, writes before and after their last operation, the
    softmax and the matrix."""
    return k * (k + 2) + 1 + k + k * (k + 1) + 2 * k + 2 * k * k


def _sinkhorn_again(k: int) -> int:
    """What Sinkhorn's backward pass makes again and holds: the sums of its steps, two matrices and the gradient."""
    return (2 * SINKHORN_ITERATIONS - 1) * k + 3 * k * k


def _sinkhorn(k: int) -> Work:
    """A step reads the matrix for its sums, and reads and writes it to divide."""
    steps = 2 * SINKHORN_ITERATIONS - 1
    return Work(moved=3 * steps * k * k, iterations=steps)
