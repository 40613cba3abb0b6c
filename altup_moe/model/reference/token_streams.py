"""Streams of the reference model that are not AltUp's: hyper-connections for every token, and NVIDIA's wide residual.

Written from the papers and from transformers' modules, one class a form, without the code of `altup.per_token`.
Shape legend: K blocks, B samples, S positions, D width of a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from altup_moe.model.reference.config import AltUpMoEConfig
from altup_moe.model.reference.layers import full, never_halved
from altup_moe.model.reference.streams import Stream

EPS = 1e-6
"""`hc_eps` of DeepSeek-V4, GLM-5-next and Hunyuan V4."""


def parameter(*shape: int) -> nn.Parameter:
    """An empty fp32 parameter."""
    return nn.Parameter(torch.empty(*shape, dtype=torch.float32))


def flat(x_KBSD: Tensor) -> Tensor:
    """[K, B, S, D] -> [B, S, K*D], at least fp32."""
    return full(x_KBSD).permute(1, 2, 0, 3).flatten(2)


def blocks_normed(x_KBSD: Tensor, eps: float) -> Tensor:
    """[B, S, K*D] over its root mean square."""
    z = flat(x_KBSD)
    return z * torch.rsqrt(z.square().mean(-1, keepdim=True) + eps)


def weighed(weights_BSK: Tensor, x_KBSD: Tensor) -> Tensor:
    """Sum over the blocks: [B, S, D]."""
    return torch.einsum("bsk,kbsd->bsd", weights_BSK, full(x_KBSD))


def even_logit(width: int) -> float:
    """The number whose sigmoid is 1 / K."""
    return -math.log(width - 1)


class TokenStream(Stream):
    """A stream whose `before` keeps what is written to, and after it the writes of each token: [2K, B, S, D]."""

    def after(self, kept: Tensor, y_BSD: Tensor) -> Tensor:
        """The next stream [K, B, S, D]."""
        kept_KBSD, writes = kept.chunk(2)
        return (kept_KBSD + writes * full(y_BSD)).to(y_BSD.dtype)


class ManifoldHyperConnections(TokenStream):
    """mHC, as transformers' DeepseekV4HyperConnection has it (arXiv 2512.24880)."""

    def __init__(self, config: AltUpMoEConfig) -> None:
        super().__init__()
        self.k = k = config.stream_width
        self.eps, self.std = config.rms_norm_eps, config.initializer_range
        self.project = parameter(k * (k + 2), k * config.hidden_size)
        self.read_bias, self.write_bias, self.mix_bias = parameter(k), parameter(k), parameter(k, k)
        self.scale = parameter(3)

    def reset(self) -> None:
        """Scales of 0: equal blocks stay equal, as in the plain Transformer."""
        init.normal_(self.project, 0.0, self.std)
        for zero in (self.read_bias, self.write_bias, self.mix_bias, self.scale):
            init.zeros_(zero)

    def weights(self, x_KBSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(read [B, S, K], matrix from block i to block j [B, S, K, K], write [B, S, K])."""
        logits = F.linear(blocks_normed(x_KBSD, self.eps), self.project)
        read, write, mix = logits.split([self.k, self.k, self.k * self.k], dim=-1)
        read = torch.sigmoid(read * self.scale[0] + self.read_bias) + EPS
        write = 2 * torch.sigmoid(write * self.scale[1] + self.write_bias)
        mix = torch.softmax(mix.unflatten(-1, (self.k, self.k)) * self.scale[2] + self.mix_bias, dim=-1) + EPS
        mix = mix / (mix.sum(-2, keepdim=True) + EPS)
        for _ in range(19):
            mix = mix / (mix.sum(-1, keepdim=True) + EPS)
            mix = mix / (mix.sum(-2, keepdim=True) + EPS)
        return read, mix, write

    def before(self, x_KBSD: Tensor) -> tuple[Tensor, Tensor]:
        """(what the branch computes on, mixed blocks and after them the writes as K more, [2K, B, S, D])."""
        read, mix, write = self.weights(x_KBSD)
        mixed_KBSD = torch.einsum("bsij,ibsd->jbsd", mix, full(x_KBSD))
        writes = write.movedim(-1, 0)[..., None].expand_as(mixed_KBSD)
        return weighed(read, x_KBSD).to(x_KBSD.dtype), torch.cat([mixed_KBSD, writes])


class SinglePassHyperConnections(ManifoldHyperConnections):
    """mHC of DeepSeek-V4.1: a branch reads with what the branch before has computed. The stream is [X; next u].

    Delayed, the next branch reads before the output is written, and the end after: [X; next u; what the end reads].
    """

    def __init__(self, config: AltUpMoEConfig) -> None:
        super().__init__(config)
        self.delayed = config.is_delayed

    def before(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(the next u, mixed blocks, writes, and reads: [3K, B, S, D])."""
        x_KBSD, u_BSD = x[: self.k], x[self.k]
        read, mix, write = self.weights(x_KBSD)
        mixed_KBSD = torch.einsum("bsij,ibsd->jbsd", mix, full(x_KBSD))
        kept = [mixed_KBSD, *(w.movedim(-1, 0)[..., None].expand_as(mixed_KBSD) for w in (write, read))]
        return u_BSD, torch.cat(kept)

    def after(self, kept: Tensor, y_BSD: Tensor) -> Tensor:
        """The next stream and what is read of it: [K + 1, B, S, D], or K + 2."""
        mixed_KBSD, writes, reads = kept.chunk(3)
        x_KBSD = mixed_KBSD + writes * full(y_BSD)
        read = [(reads * seen).sum(0)[None] for seen in ([mixed_KBSD] if self.delayed else []) + [x_KBSD]]
        return torch.cat([x_KBSD, *read]).to(y_BSD.dtype)


class IndependentHyperConnections(TokenStream):
    """Hunyuan's: read and write weights of every token, blocks are not mixed (transformers' HYV4HyperConnection)."""

    def __init__(self, config: AltUpMoEConfig) -> None:
        super().__init__()
        self.k = k = config.stream_width
        self.eps, self.std = config.rms_norm_eps, config.initializer_range
        self.project = parameter(2 * k, k * config.hidden_size)
        self.read_bias, self.write_bias, self.scale = parameter(k), parameter(k), parameter(2)

    def reset(self) -> None:
        """Reads of 1 / K, writes of 1."""
        init.normal_(self.project, 0.0, self.std)
        init.constant_(self.read_bias, even_logit(self.k))
        init.zeros_(self.write_bias)
        init.zeros_(self.scale)

    def before(self, x_KBSD: Tensor) -> tuple[Tensor, Tensor]:
        """(what the branch computes on, the blocks and the writes as K more, [2K, B, S, D])."""
        read, write = F.linear(blocks_normed(x_KBSD, self.eps), self.project).chunk(2, dim=-1)
        read = torch.sigmoid(read * self.scale[0] + self.read_bias) + EPS
        write = 2 * torch.sigmoid(write * self.scale[1] + self.write_bias) + EPS
        writes = write.movedim(-1, 0)[..., None].expand_as(x_KBSD)
        return weighed(read, x_KBSD).to(x_KBSD.dtype), torch.cat([full(x_KBSD), writes])


class GatedResidual(TokenStream):
    """Qwen4-exp's: a gate for every feature of every block (transformers' Qwen4ExpTextGatedResidual)."""

    def __init__(self, config: AltUpMoEConfig) -> None:
        super().__init__()
        self.k, features = config.stream_width, config.stream_width * config.hidden_size
        self.eps, self.std = config.rms_norm_eps, config.initializer_range
        rank = math.ceil(config.hidden_size / 8)
        self.norm = parameter(features)
        self.gate_down, self.gate_up = parameter(rank, features), parameter(features, rank)
        self.inject = parameter(self.k, features)

    def reset(self) -> None:
        """As Qwen's."""
        init.ones_(self.norm)
        for matrix in (self.gate_down, self.gate_up, self.inject):
            init.normal_(matrix, 0.0, self.std)

    def before(self, x_KBSD: Tensor) -> tuple[Tensor, Tensor]:
        """(what the branch computes on, the blocks and the writes as K more, [2K, B, S, D])."""
        z = normed_by_block(x_KBSD, self.norm, self.eps)
        write = 2 * torch.sigmoid(F.linear(z, self.inject) / self.k)
        writes = write.movedim(-1, 0)[..., None].expand_as(x_KBSD)
        u_BSD = gated_mean(z, self.gate_down, self.gate_up, self.k)
        return u_BSD.to(x_KBSD.dtype), torch.cat([full(x_KBSD), writes])


class WideResidual(Stream):
    """NVIDIA's (Megatron-LM's pulls 6716 and 7579): u = sum sigmoid(r_k) x_k; x'_i = k_i x_i + 2 sigmoid(g_i) F(u)."""

    def __init__(self, config: AltUpMoEConfig) -> None:
        super().__init__()
        self.k, self.inner_residual = config.stream_width, config.altup_level == "layer"
        self.read, self.write = parameter(self.k), parameter(self.k)
        self.keep = parameter(self.k) if config.altup_variant == "wide_residual_kept" else None

    def reset(self) -> None:
        """Reads of 1 / K, writes near 1, 0.999 of a block kept."""
        init.constant_(self.read, even_logit(self.k))
        init.copy_(self.write, torch.linspace(-0.01, 0.01, self.k))
        if self.keep is not None:
            init.zeros_(self.keep)

    def before(self, x_KBSD: Tensor) -> tuple[Tensor, Tensor]:
        """(what is computed on [B, S, D], what its output is added to [K, B, S, D])."""
        x_full = full(x_KBSD)
        u_BSD = torch.einsum("k,kbsd->bsd", torch.sigmoid(self.read), x_full)
        kept = x_full
        if self.keep is not None:
            kept = torch.einsum("k,kbsd->kbsd", 1 - 0.1 / (1 + 99 * torch.exp(self.keep)), x_full)
        if self.inner_residual:
            kept = kept - torch.einsum("k,bsd->kbsd", 2 * torch.sigmoid(self.write), u_BSD)
        return u_BSD.to(x_KBSD.dtype), kept

    def after(self, kept_KBSD: Tensor, y_BSD: Tensor) -> Tensor:
        """The next stream [K, B, S, D]."""
        return (kept_KBSD + torch.einsum("k,bsd->kbsd", 2 * torch.sigmoid(self.write), full(y_BSD))).to(y_BSD.dtype)


def normed_by_block(x_KBSD: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Each block over its own root mean square, times the weights: [B, S, K*D]."""
    x = full(x_KBSD)
    return flat(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)) * weight


def gated_mean(z: Tensor, down: Tensor, up: Tensor, width: int) -> Tensor:
    """The mean over the blocks of the gated features: [B, S, D]."""
    gates = torch.sigmoid(F.linear(F.silu(F.linear(z, down) / width), up))
    return (gates * z).unflatten(-1, (width, -1)).mean(-2)


class Head(nn.Module):
    """What collapses the blocks of a recycled stream before the final norm. Its parameters are fp32 and stay so."""

    def __init__(self, config: AltUpMoEConfig) -> None:
        super().__init__()
        self.k, self.eps, self.std = config.stream_width, config.rms_norm_eps, config.initializer_range

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Head:
        return super()._apply(never_halved(fn), recurse)

    def reset(self) -> None:
        """Set the parameters to their initial values."""
        raise NotImplementedError


class ReadHead(Head):
    """A sigmoid read of every token (transformers' DeepseekV4HyperHead, HYV4HyperHead)."""

    def __init__(self, config: AltUpMoEConfig) -> None:
        super().__init__(config)
        self.first_bias = even_logit(self.k) if config.altup_variant == "independent_hc" else 0.0
        self.project = parameter(self.k, self.k * config.hidden_size)
        self.read_bias, self.scale = parameter(self.k), parameter(1)

    def reset(self) -> None:
        """Scales of 0, as the steps'."""
        init.normal_(self.project, 0.0, self.std)
        init.constant_(self.read_bias, self.first_bias)
        init.zeros_(self.scale)

    def forward(self, x_KBSD: Tensor) -> Tensor:
        """[K, B, S, D] -> [B, S, D]."""
        logits = F.linear(blocks_normed(x_KBSD, self.eps), self.project)
        return weighed(torch.sigmoid(logits * self.scale + self.read_bias) + EPS, x_KBSD).to(x_KBSD.dtype)


class GatedHead(Head):
    """A gate for every feature of every block."""

    def __init__(self, config: AltUpMoEConfig) -> None:
        super().__init__(config)
        features, rank = self.k * config.hidden_size, math.ceil(config.hidden_size / 8)
        self.norm = parameter(features)
        self.gate_down, self.gate_up = parameter(rank, features), parameter(features, rank)

    def reset(self) -> None:
        """As Qwen's."""
        init.ones_(self.norm)
        init.normal_(self.gate_down, 0.0, self.std)
        init.normal_(self.gate_up, 0.0, self.std)

    def forward(self, x_KBSD: Tensor) -> Tensor:
        """[K, B, S, D] -> [B, S, D]."""
        z = normed_by_block(x_KBSD, self.norm, self.eps)
        return gated_mean(z, self.gate_down, self.gate_up, self.k).to(x_KBSD.dtype)


class WeightedHead(Head):
    """One weight a block, the same for all tokens (NVIDIA's exit readout)."""

    def __init__(self, config: AltUpMoEConfig) -> None:
        super().__init__(config)
        self.read = parameter(self.k)

    def reset(self) -> None:
        """The mean."""
        init.constant_(self.read, even_logit(self.k))

    def forward(self, x_KBSD: Tensor) -> Tensor:
        """[K, B, S, D] -> [B, S, D]."""
        return torch.einsum("k,kbsd->bsd", torch.sigmoid(self.read), full(x_KBSD)).to(x_KBSD.dtype)


HEADS: dict[str, type[Head]] = {
    "mhc": ReadHead,
    "independent_hc": ReadHead,
    "gated_residual": GatedHead,
    "wide_residual": WeightedHead,
    "wide_residual_kept": WeightedHead,
}
"""Heads by altup.variant."""


def manifold_stream(config: AltUpMoEConfig, block: int) -> Stream:
    """Manifold-constrained hyper-connections."""
    return ManifoldHyperConnections(config)


def single_pass_stream(config: AltUpMoEConfig, block: int) -> Stream:
    """Those of DeepSeek-V4.1."""
    return SinglePassHyperConnections(config)


def independent_stream(config: AltUpMoEConfig, block: int) -> Stream:
    """Hunyuan's hyper-connections."""
    return IndependentHyperConnections(config)


def gated_stream(config: AltUpMoEConfig, block: int) -> Stream:
    """Qwen4-exp's gated residual."""
    return GatedResidual(config)


def wide_residual_stream(config: AltUpMoEConfig, block: int) -> Stream:
    """NVIDIA's wide residual stream."""
    return WideResidual(config)
