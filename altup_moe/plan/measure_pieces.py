"""What an unfused rank's pieces take on this machine (`plan.unfused.Unfused`), each run on its own. It runs torch.

A piece is run on many sets of tensors, forward on all of them and then backward, so that it finds its inputs where a
step leaves them: not all in the cache. What a call takes however small it is falls out by subtracting a small size.
Times are the processor's, and of repeated ones the least is taken: what others do on the machine only adds.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from altup_moe.altup.kernels import kernel
from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, RunConfig, TrainConfig
from altup_moe.plan.cpu_cost_model import SIZES, Pair
from altup_moe.plan.ranks import batches, timed_steps

KEPT = 2**23
"""Bytes of the tensors that a piece goes through in turn, of each kind."""
SMALL, LARGE = 2**14, 2**17
"""Numbers in a tensor. The large one is that of a small model: 512 tokens of 256 features, half a MiB."""

Piece = Callable[[int], tuple[Callable[..., Tensor], list[Tensor]]]
"""numbers -> (function, its inputs)."""


def pair_seconds(piece: Piece, numbers: int, repeats: int = 5) -> Pair:
    """(forward, backward) of one call."""
    sets = [piece(numbers) for _ in range(_many(numbers))]
    for _, inputs in sets:
        for tensor in inputs:
            tensor.requires_grad_(tensor.is_floating_point())
    forward, backward = [], []
    for _ in range(repeats + 1):
        begin = time.process_time()
        outs = [function(*inputs) for function, inputs in sets]
        middle = time.process_time()
        for out, (_, inputs) in zip(reversed(outs), reversed(sets), strict=True):
            wanted = [tensor for tensor in inputs if tensor.requires_grad]
            torch.autograd.grad(out, wanted, out.detach())
        forward.append(middle - begin)
        backward.append(time.process_time() - middle)
    return min(forward[1:]) / len(sets), min(backward[1:]) / len(sets)


def nanoseconds(piece: Piece, small: int = SMALL, large: int = LARGE) -> Pair:
    """(forward, backward) of a number on top of the call itself."""
    few, many = pair_seconds(piece, small), pair_seconds(piece, large)
    forward, backward = (max(1e-4, 1e9 * (b - a) / (large - small)) for a, b in zip(few, many, strict=True))
    return forward, backward


def _norm(numbers: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    x = torch.randn(numbers // 256, 256)
    return lambda x, w: F.rms_norm(x, w.shape, w, 1e-5), [x, torch.ones(256)]


def _rotary(numbers: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    t = torch.randn(numbers // 512, 2, 8, 32)
    angles = torch.randn(numbers // 512, 1, 1, 32)

    def rotate(t: Tensor) -> Tensor:
        first, second = t.chunk(2, dim=-1)
        turned = t * torch.cos(angles) + torch.cat((-second, first), dim=-1) * torch.sin(angles)
        return torch.cat((turned, t[..., 32:]), dim=-1)

    return rotate, [t]


def _gate(numbers: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    def gate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return F.silu(first) * second

    return gate, [torch.randn(numbers // 512, 1024)]


def _weigh(numbers: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    return lambda x, p: x * p.unsqueeze(-1), [torch.randn(numbers // 256, 256), torch.randn(numbers // 256)]


def _copy(numbers: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    return lambda x: x.permute(1, 2, 0, 3).contiguous(), [torch.randn(numbers // 512, 2, 8, 32)]


def _permute(numbers: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
    rows = numbers // 512
    order = torch.randperm(2 * rows) % rows
    spread = order[:, None].expand(-1, 256)

    def there_and_back(x: Tensor) -> Tensor:
        return torch.zeros(rows, 256).scatter_add(0, spread, x.index_select(0, order))

    return there_and_back, [torch.randn(rows, 256)]


def _attention(head: int) -> Piece:
    """Numbers are samples of 256 tokens and 8 heads of so many channels; keys and values have 4."""

    def piece(samples: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
        q, k, v = (torch.randn(256, samples, heads, head).permute(1, 2, 0, 3) for heads in (8, 4, 4))
        return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True), [q, k, v]

    return piece


def attention_ns() -> dict[str, Pair]:
    """score and channel: from heads of 32 and 64 channels, of four samples over one."""
    found = []
    for head in (32, 64):
        piece = _attention(head)
        one, four = (_plain(piece, samples) for samples in (1, 4))
        found.append([1e9 * (b - a) / (3 * 8 * 256 * 256 / 2) for a, b in zip(one, four, strict=True)])
    channel = [max(1e-4, (wide - narrow) / 32) for narrow, wide in zip(*found, strict=True)]
    score = [max(1e-4, narrow - 32 * more) for narrow, more in zip(found[0], channel, strict=True)]
    return {"score": (score[0], score[1]), "channel": (channel[0], channel[1])}


def _plain(piece: Piece, numbers: int) -> Pair:
    """As `pair_seconds`, a few sets."""

    def few(_: int) -> tuple[Callable[..., Tensor], list[Tensor]]:
        return piece(numbers)

    return pair_seconds(few, KEPT // 16)


def seconds(work: Callable[..., object], *args: Any, repeats: int = 7) -> float:
    """Of one call."""
    work(*args)
    taken = []
    for _ in range(repeats):
        begin = time.process_time()
        work(*args)
        taken.append(time.process_time() - begin)
    return min(taken)


def _many(numbers: int) -> int:
    return max(2, KEPT // (4 * numbers))


def mixing_ns() -> dict[str, Pair]:
    """mix and mix_more: the pass and the axpy that follows it, for two and four blocks."""
    plain = kernel("torch", torch.device("cpu"))
    one = torch.randn(1, 2)

    def forward(sets: list[tuple[Tensor, Tensor]], weights: Tensor) -> None:
        for x, y in sets:
            plain.forward(x, y, weights), plain.forward(x[:1], y, one)

    def backward(sets: list[tuple[Tensor, Tensor]], weights: Tensor) -> None:
        for x, y in sets:
            plain.backward(x, x, y, weights)
            # What a block that is read, and the axpy, add to it.
            x[0].add_(y, alpha=1e-9)
            torch.dot(x[0], y), plain.forward(x[:1], y, one)

    found = []
    for width in (2, 4):
        weights, spent = torch.randn(width, width + 1), []
        for columns in (SMALL, LARGE):
            sets = [(torch.randn(width, columns), torch.randn(columns)) for _ in range(_many(2 * columns))]
            spent.append([seconds(work, sets, weights) / len(sets) for work in (forward, backward)])
        read = (width + 1) * (LARGE - SMALL)
        found.append([1e9 * (b - a) / read for a, b in zip(*spent, strict=True)])
    more = [(four - two) / 2 for two, four in zip(*found, strict=True)]
    base = [two - 2 * m for two, m in zip(found[0], more, strict=True)]
    return {"mix": (base[0], base[1]), "mix_more": (more[0], more[1])}


def logit_ns() -> Pair:
    """As Megatron's cross-entropy: in place, but for the largest logit."""
    rows = [LARGE // 2048, 8 * LARGE // 2048]

    def forward(x: Tensor) -> None:
        x -= x.max(dim=-1)[0].unsqueeze(-1)
        torch.exp(x, out=x)
        x.div_(x.sum(dim=-1).unsqueeze(-1))

    def backward(x: Tensor) -> None:
        x.mul_(torch.ones(len(x), 1))

    found = []
    for work in (forward, backward):
        few, many = (seconds(work, torch.randn(n, 2048)) for n in rows)
        found.append(max(1e-4, 1e9 * (many - few) / (7 * LARGE)))
    return found[0], found[1]


def parameter_ns() -> dict[str, Pair]:
    """gradient and update, on 2^22 parameters: more than a cache holds."""
    weights, grads = (torch.randn(2**22) * 1e-3 for _ in range(2))
    small = torch.randn(2**16)
    optimizer = torch.optim.AdamW([weights.requires_grad_()], fused=True)
    weights.grad = torch.zeros_like(weights)

    def gradient() -> None:
        for piece in grads.split(2**16):
            piece.add_(small)

    def update() -> None:
        assert weights.grad is not None
        weights.grad.zero_()
        grads.sum()
        grads.mul_(0.999)
        weights.grad.copy_(grads)
        torch.linalg.vector_norm(grads)
        grads.mul_(0.999)
        optimizer.step()

    each = 1e9 / len(weights)
    return {"gradient": (0.0, each * seconds(gradient)), "update": (each * seconds(update), 0.0)}


def add_ns() -> Pair:
    """A sum of two, and the sum of the gradients that meet there."""

    def add(sets: list[Tensor]) -> list[Tensor]:
        return [a + b for a, b in sets]

    few, many = (seconds(add, [torch.randn(2, n) for _ in range(_many(n))]) / _many(n) for n in (SMALL, LARGE))
    each = max(1e-4, 1e9 * (many - few) / (LARGE - SMALL))
    return each, each


def pieces_ns() -> dict[str, Pair]:
    """All of `unfused.PIECES`."""
    autograd: dict[str, Piece] = {
        "norm": _norm, "rotary": _rotary, "gate": _gate, "weigh": _weigh, "copy": _copy, "permute": _permute,
    }  # fmt: skip
    found = {name: nanoseconds(piece) for name, piece in autograd.items()}
    return {**found, **attention_ns(), **mixing_ns(), "add": add_ns(), "logit": logit_ns(), **parameter_ns()}


def product_seconds(rows: int, inner: int, outer: int) -> Pair:
    """(x W^T, both products of its gradient)."""
    count = max(1, min(32, KEPT // (4 * max(rows * inner, inner * outer, rows * outer))))
    sets = [(torch.randn(rows, inner), torch.randn(outer, inner), torch.randn(rows, outer)) for _ in range(count)]
    repeats = 5 if rows * inner * outer < 2**27 else 3
    forward = seconds(lambda: [x @ w.t() for x, w, _ in sets], repeats=repeats)
    backward = seconds(lambda: [(g @ w, g.t() @ x) for x, w, g in sets], repeats=repeats)
    return forward / count, backward / count


def product_gflops(sizes: Sequence[int] = SIZES) -> tuple[list[float], list[float]]:
    """Both tables of `Unfused`."""
    forward, backward = [], []
    for rows, inner, outer in itertools.product(sizes, repeat=3):
        there, back = product_seconds(rows, inner, outer)
        forward.append(2e-9 * rows * inner * outer / there)
        backward.append(4e-9 * rows * inner * outer / back)
    return forward, backward


def large_rates() -> tuple[float, float, float]:
    """A large product's operations a second in fp32 and in bf16, and a large copy's bytes a second."""
    a, b = torch.randn(1024, 1024), torch.randn(256, 256).to(torch.bfloat16)
    whole = torch.zeros(2**25)
    other = torch.empty_like(whole)
    fp32, bf16 = (2 * len(x) ** 3 / seconds(torch.mm, x, x) for x in (a, b))
    # Read once, written once.
    return fp32, bf16, 2 * 4 * len(whole) / seconds(other.copy_, whole)


def _tiny(layers: int, experts: int, count: int, recompute: Literal["none", "full"] = "none") -> RunConfig:
    """A run that has next to nothing to compute."""
    model = ModelConfig(layers, 16, 16, 2, 1, 8, 64, share_embeddings_and_output_weights=False)
    train = TrainConfig(micro_batch_size=1, global_batch_size=count, recompute=recompute)
    return RunConfig(model, AltUpConfig(width=2), MoEConfig(experts, ffn_hidden_size=16), train=train)


def calls_us() -> dict[str, Pair]:
    """All of `unfused.CALLS`: steps of tiny runs that differ in one number, on this process alone."""
    # Megatron's table of router losses has as many layers as the first run with experts.
    runs = {
        "base": _tiny(4, 0, 4),
        "layers": _tiny(8, 0, 4),
        "batches": _tiny(4, 0, 12),
        "two": _tiny(4, 2, 4),
        "six": _tiny(4, 6, 4),
        "again": _tiny(4, 6, 4, "full"),
    }
    t = {name: 1e6 * one for name, one in zip(runs, _steps(runs.values()), strict=True)}
    # Differences of timings may come out below nothing, which no call takes.
    layer = max(0.0, t["layers"] - t["base"]) / 16
    ends = max(0.0, (t["batches"] - t["base"]) / 8 - 4 * layer)
    expert = max(0.0, t["six"] - t["two"]) / 64
    experts = max(0.0, (t["two"] - t["base"]) / 16 - 2 * expert)
    # Layers that are computed twice have their forward once more; ends are taken to be like layers.
    again = max(0.0, t["again"] - t["six"]) / 16
    share = min(1.0, again / max(again, layer + experts + 6 * expert, 1e-9))
    found = {"layer": layer, "experts": experts, "expert": expert, "ends": ends}
    step = max(0.0, t["base"] - 4 * (ends + 4 * layer))
    return {**{key: (share * us, (1 - share) * us) for key, us in found.items()}, "step": (step, 0.0)}


def _steps(runs: Any) -> Iterator[float]:
    import torch.distributed as dist

    with tempfile.TemporaryDirectory() as directory:
        dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=0, world_size=1)
        for run in runs:
            yield min(step.busy for step in timed_steps(run, batches(run, run.train.global_batch_size), 8))
        dist.destroy_process_group()


def sample_seconds() -> float:
    """A product, an activation and a norm, a few times: how fast a core is just now."""
    sets = [(torch.randn(512, 256), torch.randn(704, 256)) for _ in range(8)]
    return seconds(lambda: [(F.silu(x @ w.t()), F.rms_norm(x, (256,))) for x, w in sets], repeats=15)
