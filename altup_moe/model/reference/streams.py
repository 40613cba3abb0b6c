"""The wide streams of the reference model, one class a form: what a layer reads, and what becomes of its output.

Shape legend: K blocks, B samples, S positions, D width of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from altup_moe.altup.lazy import load_object
from altup_moe.altup.static import Mixing, initial_value
from altup_moe.altup.variants import find_variant
from altup_moe.model.reference.config import AltUpMoEConfig
from altup_moe.model.reference.layers import full, never_halved


class Stream(nn.Module):
    """What stands around one layer, or one of its branches. Its coefficients are fp32 and stay so.

    ``with_residual``: around a branch, whether `after` takes the branch's output with the residual u + F(u), as a
    layer's, or F(u) alone.
    """

    with_residual = False

    def reset(self) -> None:
        """Set the coefficients to their initial values."""
        raise NotImplementedError

    def before(self, x_KBSD: Tensor) -> tuple[Tensor, Tensor]:
        """(what the layer computes on [B, S, D], what `after` takes [K, B, S, D])."""
        raise NotImplementedError

    def after(self, kept_KBSD: Tensor, y_BSD: Tensor) -> Tensor:
        """The next layer's stream [K, B, S, D], from what `before` gave and the layer's output."""
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Stream:
        return super()._apply(never_halved(fn), recurse)


class StaticStream(Stream):
    """Any variant with static weights: u = r X;  y = F(u);  X' = M X + g (x) y, or g (x) (y - u).

    The weights are those of the variant's row (`altup.variants`). Rows that are older than this class have one of their
    own below, which shares no code with the row.
    """

    def __init__(self, config: AltUpMoEConfig, block: int) -> None:
        super().__init__()
        self.variant, self.block, self.std = find_variant(config.altup_variant), block, config.initializer_range
        self.level: Any = config.altup_level
        for name, coefficient in self.variant.coefficients.items():
            shape = coefficient.sizes(config.stream_width, config.hidden_size)
            self.register_parameter(name, nn.Parameter(torch.empty(shape, dtype=torch.float32)))

    def reset(self) -> None:
        """As the row says."""
        for name, coefficient in self.variant.coefficients.items():
            parameter = self.get_parameter(name)
            if coefficient.initial == "normal":
                init.normal_(parameter, 0.0, self.std)
            else:
                init.copy_(parameter, initial_value(coefficient.initial, tuple(parameter.shape), self.block))

    def before(self, x_KBSD: Tensor) -> tuple[Tensor, Tensor]:
        """(what the layer computes on [B, S, D], what its output is added to [K, B, S, D])."""
        mixing, x_full = self._mixing(), full(x_KBSD)
        if isinstance(mixing.read, int):
            u_BSD = x_full[mixing.read]
        else:
            u_BSD = torch.einsum("k,kbsd->bsd", mixing.read, x_full)
        kept_KBSD = torch.einsum("ik,kbsd->ibsd", mixing.mix, x_full)
        if mixing.branch:
            kept_KBSD = kept_KBSD - torch.einsum("i,bsd->ibsd", mixing.write, u_BSD)
        return u_BSD.to(x_KBSD.dtype), kept_KBSD

    def after(self, kept_KBSD: Tensor, y_BSD: Tensor) -> Tensor:
        """The next layer's stream [K, B, S, D]."""
        return (kept_KBSD + torch.einsum("i,bsd->ibsd", self._mixing().write, full(y_BSD))).to(y_BSD.dtype)

    def _mixing(self) -> Mixing:
        return self.variant.mixing(self.block, dict(self.named_parameters()), self.level)


class DelayedStream(StaticStream):
    """A static stream of which the next read does not see the last output. It is [H; g (x) y], 2K blocks: a step reads
    u = r H, and mixes their sum x = H + g (x) y."""

    def before(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(what the layer computes on [B, S, D], the next H and what the write adds to: [2K, B, S, D])."""
        mixing, (seen_KBSD, written_KBSD) = self._mixing(), full(x).chunk(2)
        if isinstance(mixing.read, int):
            u_BSD = seen_KBSD[mixing.read]
        else:
            u_BSD = torch.einsum("k,kbsd->bsd", mixing.read, seen_KBSD)
        mixed_KBSD = torch.einsum("ik,kbsd->ibsd", mixing.mix, seen_KBSD + written_KBSD)
        # A layer's output has its input in it; where the change is written, that is taken out.
        taken_KBSD = torch.einsum("i,bsd->ibsd", -mixing.write if mixing.branch else 0 * mixing.write, u_BSD)
        return u_BSD.to(x.dtype), torch.cat([mixed_KBSD, taken_KBSD])

    def after(self, kept: Tensor, y_BSD: Tensor) -> Tensor:
        """The next layer's stream [2K, B, S, D]."""
        mixed_KBSD, taken_KBSD = kept.chunk(2)
        written_KBSD = taken_KBSD + torch.einsum("i,bsd->ibsd", self._mixing().write, full(y_BSD))
        return torch.cat([mixed_KBSD, written_KBSD]).to(y_BSD.dtype)

    def _mixing(self) -> Mixing:
        return self.variant.mixing(self.block, dict(self.named_parameters()), self.level, next_block=self.block)


class DelayedResidual(Stream):
    """The plain residual stream of which the next read does not see the last output: [x; y - u], two blocks."""

    def __init__(self, level: str) -> None:
        super().__init__()
        self.with_residual = level == "layer"

    def reset(self) -> None:
        """There is nothing to set."""

    def before(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(what the step computes on [B, S, D], the next x and what is taken out of its output [2, B, S, D])."""
        seen_BSD, written_BSD = full(x)
        taken_BSD = seen_BSD if self.with_residual else torch.zeros_like(seen_BSD)
        return x[0], torch.stack([seen_BSD + written_BSD, taken_BSD])

    def after(self, kept: Tensor, y_BSD: Tensor) -> Tensor:
        """The next step's [x; y - u], [2, B, S, D]."""
        return torch.stack([kept[0], full(y_BSD) - kept[1]]).to(y_BSD.dtype)


class PredictCorrect(Stream):
    """AltUp (arXiv 2301.13310, Algorithm 1), and the form in which the layer computes on the predicted block.

    predict: x^_i = sum_m P_im x_m;  compute: y = F(x_j), or F(x^_j) for `gemma`;  correct: x'_i = x^_i + g_i (y - x^_j)
    Around a branch it is the branch with its residual that computes. ``unwritten``: a block that is not corrected.
    """

    with_residual = True

    def __init__(self, width: int, block: int, on_predicted: bool, unwritten: int | None = None) -> None:
        super().__init__()
        self.unwritten = unwritten
        self.predict = nn.Parameter(torch.empty(width, width, dtype=torch.float32))
        self.correct = nn.Parameter(torch.empty(width, dtype=torch.float32))
        self.block, self.on_predicted = block, on_predicted

    def reset(self) -> None:
        """P = I, g = 1: with equal blocks the layer is the plain Transformer's."""
        init.eye_(self.predict)
        init.ones_(self.correct)

    def before(self, x_KBSD: Tensor) -> tuple[Tensor, Tensor]:
        """(what the layer computes on [B, S, D], predicted blocks [K, B, S, D] in fp32)."""
        predicted_KBSD = torch.einsum("im,mbsd->ibsd", self.predict, full(x_KBSD))
        source_KBSD = predicted_KBSD if self.on_predicted else x_KBSD
        return source_KBSD[self.block].to(x_KBSD.dtype), predicted_KBSD

    def after(self, predicted_KBSD: Tensor, y_BSD: Tensor) -> Tensor:
        """The next layer's stream [K, B, S, D]."""
        error_BSD = full(y_BSD) - predicted_KBSD[self.block]
        corrected_KBSD = (predicted_KBSD + torch.einsum("i,bsd->ibsd", self.correct, error_BSD)).to(y_BSD.dtype)
        if self.unwritten is None:
            return corrected_KBSD
        blocks = list(corrected_KBSD)
        blocks[self.unwritten] = predicted_KBSD[self.unwritten].to(y_BSD.dtype)
        return torch.stack(blocks)


class RoundRobin(Stream):
    """u = sum_k r_k x_k;  y = F(u);  x'_j = x_j + s y, the other blocks stay."""

    def __init__(self, width: int, block: int) -> None:
        super().__init__()
        self.read = nn.Parameter(torch.empty(width, dtype=torch.float32))
        self.scale = nn.Parameter(torch.empty(1, dtype=torch.float32))
        self.block = block

    def reset(self) -> None:
        """r = e_j, s = 1: the layer reads and writes block j alone."""
        init.copy_(self.read, F.one_hot(torch.tensor(self.block), self.read.shape[0]))
        init.ones_(self.scale)

    def before(self, x_KBSD: Tensor) -> tuple[Tensor, Tensor]:
        """(what the layer computes on [B, S, D], the unchanged blocks [K, B, S, D])."""
        return torch.einsum("k,kbsd->bsd", self.read, full(x_KBSD)).to(x_KBSD.dtype), x_KBSD

    def after(self, x_KBSD: Tensor, y_BSD: Tensor) -> Tensor:
        """The next layer's stream [K, B, S, D]."""
        blocks = list(x_KBSD)
        blocks[self.block] = (full(blocks[self.block]) + self.scale * full(y_BSD)).to(y_BSD.dtype)
        return torch.stack(blocks)


class HyperConnections(Stream):
    """Static hyper-connections (arXiv 2409.19606): u = r X;  y = F(u);  x'_i = sum_k M_ik x_k + g_i (y - u).

    The paper connects the branches T of attention and feed-forward one by one, F(u) = u + T(u). F may be a whole layer.
    """

    with_residual = True

    def __init__(self, width: int, block: int) -> None:
        super().__init__()
        self.read = nn.Parameter(torch.empty(width, dtype=torch.float32))
        self.mix = nn.Parameter(torch.empty(width, width, dtype=torch.float32))
        self.write = nn.Parameter(torch.empty(width, dtype=torch.float32))
        self.block = block

    def reset(self) -> None:
        """r = e_j, M = I, g = 1 (as in the paper): with equal blocks the layer is the plain Transformer's."""
        init.copy_(self.read, F.one_hot(torch.tensor(self.block), self.read.shape[0]))
        init.eye_(self.mix)
        init.ones_(self.write)

    def before(self, x_KBSD: Tensor) -> tuple[Tensor, Tensor]:
        """(what the layer computes on [B, S, D], what its output is added to [K, B, S, D])."""
        u_BSD = torch.einsum("k,kbsd->bsd", self.read, full(x_KBSD))
        mixed_KBSD = torch.einsum("ik,kbsd->ibsd", self.mix, full(x_KBSD))
        return u_BSD.to(x_KBSD.dtype), mixed_KBSD - torch.einsum("i,bsd->ibsd", self.write, u_BSD)

    def after(self, rest_KBSD: Tensor, y_BSD: Tensor) -> Tensor:
        """The next layer's stream [K, B, S, D]."""
        return (rest_KBSD + torch.einsum("i,bsd->ibsd", self.write, full(y_BSD))).to(y_BSD.dtype)


class DynamicAltUp(Stream):
    """Coefficients for every token, as transformers' `Gemma3nTextAltUp` has them.

    m(z) = tanh(R norm(z) / D);  predict: x^_i = x_i + sum_k C(m(x_j))_ik x_k;  compute: y = F(x^_j);
    correct: x'_i = x^_i + (1 + G m(y))_i (y - x^_j)
    """

    with_residual = True

    def __init__(self, width: int, block: int, hidden_size: int, eps: float, clip: float | None, std: float) -> None:
        super().__init__()
        self.router_norm = nn.Parameter(torch.empty(hidden_size, dtype=torch.float32))
        self.router = nn.Parameter(torch.empty(width, hidden_size, dtype=torch.float32))
        self.prediction = nn.Parameter(torch.empty(width * width, width, dtype=torch.float32))
        self.correction = nn.Parameter(torch.empty(width, width, dtype=torch.float32))
        self.block, self.eps, self.clip, self.std = block, eps, clip, std

    def reset(self) -> None:
        """C = 0, G = 0: whatever the router says, the layer starts as AltUp does with P = I and g = 1."""
        init.ones_(self.router_norm)
        init.normal_(self.router, 0.0, self.std)
        init.zeros_(self.prediction)
        init.zeros_(self.correction)

    def modalities(self, z_BSD: Tensor) -> Tensor:
        """m(z): [B, S, K]."""
        z_BSD = full(z_BSD)
        normed = z_BSD * torch.rsqrt(z_BSD.square().mean(-1, keepdim=True) + self.eps) * self.router_norm
        return torch.tanh(normed / z_BSD.shape[-1] @ self.router.t())

    def used(self, weight: Tensor) -> Tensor:
        """A weight of C or G, no larger than the clip."""
        return weight if self.clip is None else weight.clamp(-self.clip, self.clip)

    def before(self, x_KBSD: Tensor) -> tuple[Tensor, Tensor]:
        """(what the layer computes on [B, S, D], predicted blocks [K, B, S, D])."""
        # As in Gemma, where the weights themselves are cut, those of C beyond the clip keep their gradient.
        c = self.prediction + (self.used(self.prediction) - self.prediction).detach()
        k = self.correction.shape[0]
        changes = (self.modalities(x_KBSD[self.block]) @ c.t()).unflatten(-1, (k, k))
        x_full = full(x_KBSD)
        predicted_KBSD = (x_full + torch.einsum("bsik,kbsd->ibsd", changes, x_full)).to(x_KBSD.dtype)
        return predicted_KBSD[self.block], predicted_KBSD

    def after(self, predicted_KBSD: Tensor, y_BSD: Tensor) -> Tensor:
        """The next layer's stream [K, B, S, D]."""
        gains_BSK = 1 + self.modalities(y_BSD) @ self.used(self.correction).t()
        error_BSD = full(y_BSD) - full(predicted_KBSD[self.block])
        return (full(predicted_KBSD) + gains_BSK.movedim(-1, 0)[..., None] * error_BSD).to(y_BSD.dtype)


def static_stream(config: AltUpMoEConfig, block: int) -> Stream:
    """A stream that is built from its variant's row."""
    return StaticStream(config, block)


def altup_stream(config: AltUpMoEConfig, block: int) -> Stream:
    """The paper's stream."""
    unwritten = (block + 1) % config.stream_width if config.is_delayed else None
    return PredictCorrect(config.stream_width, block, on_predicted=False, unwritten=unwritten)


def gemma_stream(config: AltUpMoEConfig, block: int) -> Stream:
    """The stream whose layers compute on the predicted block."""
    return PredictCorrect(config.stream_width, block, on_predicted=True)


def round_robin_stream(config: AltUpMoEConfig, block: int) -> Stream:
    """The stream whose layers add to one block."""
    return RoundRobin(config.stream_width, block)


def hyper_connections_stream(config: AltUpMoEConfig, block: int) -> Stream:
    """Static hyper-connections."""
    return HyperConnections(config.stream_width, block)


def dynamic_stream(config: AltUpMoEConfig, block: int) -> Stream:
    """Gemma-3n's stream."""
    clip, std = config.altup_coef_clip, config.initializer_range
    return DynamicAltUp(config.stream_width, block, config.hidden_size, config.rms_norm_eps, clip, std)


def stream_around(config: AltUpMoEConfig, layer: int, branch: str = "") -> Stream:
    """What stands around layer `layer` (from 0), or one of its branches."""
    block = config.selected_block(layer, branch)
    if config.stream_width == 1:
        return DelayedResidual(config.altup_level)
    if config.reads_before_write:
        return DelayedStream(config, block)
    return load_object(find_variant(config.altup_variant).reference)(config, block)


class BlockProjection(nn.Linear):
    """The matrix of one block at an end of a dynamic stream. Starts as the identity and the usual random weights."""

    def reset(self, std: float) -> None:
        """I + N(0, std^2): nearly equal blocks, so nearly the plain model, but no two blocks that stay equal."""
        init.copy_(self.weight, torch.eye(self.in_features) + std * torch.randn(self.weight.shape))

    def forward(self, x: Tensor, first: Tensor) -> Tensor:  # type: ignore[override]
        """The projected block, of the magnitude (root mean square over features) of the first block."""
        projected, first = full(super().forward(x)), full(first)
        size = projected.square().mean(-1, keepdim=True).clamp(min=1e-5).sqrt()
        return (projected * first.square().mean(-1, keepdim=True).sqrt() / size).to(x.dtype)


def projections(hidden_size: int, width: int) -> nn.ModuleList:
    """Those of blocks 1 to K - 1."""
    return nn.ModuleList(BlockProjection(hidden_size, hidden_size, bias=False) for _ in range(1, width))
