"""The reference model's building blocks: norm, attention, gated MLP, experts. They know nothing of the wide stream.

Shape legend: B samples, S positions, T = S*B tokens in [S, B]-flattened order, D width of a layer, E experts, k experts
a token is routed to, H heads, G key/value heads, C features of a head. Statistics are taken in fp32, or in float64
where the model is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache

from altup_moe.model.reference.config import AltUpMoEConfig
from altup_moe.moe.activations import ACTIVATIONS
from altup_moe.moe.capacity import expert_capacity, keep_within_capacity


def full(x: Tensor) -> Tensor:
    """At least single precision: half types become fp32, the rest stays."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def never_halved(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`fn` of `Module._apply` (.to, .bfloat16, .cuda), except that it does not round to a half type."""

    def apply(t: Tensor) -> Tensor:
        out = fn(t)
        return t.to(out.device) if out.dtype in (torch.bfloat16, torch.float16) else out

    return apply


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * w, in fp32, cast back (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        x_full = full(x)
        scale = torch.rsqrt(x_full.square().mean(-1, keepdim=True) + self.eps)
        return (x_full * scale * full(self.weight)).to(x.dtype)


class ResidualOutput(nn.Linear):
    """The projection that ends a residual branch; its initial weights are smaller by sqrt(2 layers)."""


# --------------------------------------------------------------------------------------------------------- attention


def stretched(frequencies: Tensor, factor: float) -> Tensor:
    """Llama 3.1's longer waves, as `rope_type: llama3` in transformers and `rope_scaling` in Megatron-Core.

    A wave turns 8192 / wavelength times in the context it was first trained on. Those that turn less than once are
    slowed down by `factor`, those that turn four times or more stay, those between are blended linearly.
    """
    turns = 8192 * frequencies / (2 * math.pi)
    kept = ((turns - 1) / 3).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / factor)


def rotate(x_BHSC: Tensor, positions_BS: Tensor, base: float, scaling: float | None = None) -> Tensor:
    """RoPE (arXiv 2104.09864) over the whole head, feature i paired with i + C/2 (Megatron's rotary_interleaved False).

    Angles are fp32 whatever the dtype of x, as in Megatron-Core. `scaling`: see `stretched`.
    """
    c = x_BHSC.shape[-1]
    # Rounded as Megatron and transformers round it: far along a text, a last bit of a frequency counts.
    frequencies = 1.0 / base ** (torch.arange(0, c, 2, device=x_BHSC.device, dtype=torch.float32) / c)
    if scaling is not None:
        frequencies = stretched(frequencies, scaling)
    angles = (positions_BS[:, None, :, None].float() * frequencies).repeat(1, 1, 1, 2)
    first, second = x_BHSC.chunk(2, dim=-1)
    half_turned = torch.cat((-second, first), dim=-1)
    return x_BHSC * angles.cos().to(x_BHSC.dtype) + half_turned * angles.sin().to(x_BHSC.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention (arXiv 2305.13245)."""

    def __init__(self, config: AltUpMoEConfig, layer: int) -> None:
        super().__init__()
        d, c = config.hidden_size, config.head_dim
        self.layer, self.head_dim, self.dropout = layer, c, config.attention_dropout
        self.rotary = (config.rotary_base, config.rotary_scaling_factor)
        self.q_proj = nn.Linear(d, config.num_attention_heads * c, bias=False)
        self.k_proj = nn.Linear(d, config.num_key_value_heads * c, bias=False)
        self.v_proj = nn.Linear(d, config.num_key_value_heads * c, bias=False)
        self.o_proj = ResidualOutput(config.num_attention_heads * c, d, bias=False)
        self.q_norm = RMSNorm(c, config.rms_norm_eps) if config.use_qk_norm else None
        self.k_norm = RMSNorm(c, config.rms_norm_eps) if config.use_qk_norm else None

    def forward(self, x_BSD: Tensor, positions_BS: Tensor, mask: Tensor | None, cache: DynamicCache | None) -> Tensor:
        """`mask`: bool [B, 1, S, past + S], True where a query may look; None is plain causal."""
        b, s, _ = x_BSD.shape
        q_BHSC = self.q_proj(x_BSD).view(b, s, -1, self.head_dim).transpose(1, 2)
        k_BGSC = self.k_proj(x_BSD).view(b, s, -1, self.head_dim).transpose(1, 2)
        v_BGSC = self.v_proj(x_BSD).view(b, s, -1, self.head_dim).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q_BHSC, k_BGSC = self.q_norm(q_BHSC), self.k_norm(k_BGSC)
        q_BHSC, k_BGSC = rotate(q_BHSC, positions_BS, *self.rotary), rotate(k_BGSC, positions_BS, *self.rotary)
        if cache is not None:
            k_BGSC, v_BGSC = cache.update(k_BGSC, v_BGSC, self.layer)
        dropout = self.dropout if self.training else 0.0
        y_BHSC = F.scaled_dot_product_attention(
            q_BHSC, k_BGSC, v_BGSC, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, enable_gqa=True
        )
        return self.o_proj(y_BHSC.transpose(1, 2).reshape(b, s, -1))


def attention_mask(padding: Tensor | None, s: int, past: int, device: torch.device) -> Tensor | None:
    """Bool [B or 1, 1, S, past + S], True where a query may look; None where plain causal attention says the same.

    Args:
        padding: [B, past + S], 1 on tokens and 0 on padding, or None; or a finished mask of four dimensions, which
            `generate` makes for caches of a fixed size.
    """
    if padding is not None and padding.ndim == 4:
        return padding
    if padding is None and past == 0:
        return None
    queries, keys = torch.arange(past, past + s, device=device), torch.arange(past + s, device=device)
    visible = (keys <= queries[:, None])[None, None]
    if padding is not None:
        visible = visible & padding[:, None, None, :].bool()
    return visible | (keys == queries[:, None])  # padding sees itself: an empty row would be a division by zero


# ------------------------------------------------------------------------------------------------------ feed-forward


class GatedMLP(nn.Module):
    """down(act(gate x) * up x) (SwiGLU, GEGLU, arXiv 2002.05202)."""

    def __init__(self, width: int, inner: int, activation: str = "silu") -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = ResidualOutput(inner, width, bias=False)

    def forward(self, x: Tensor, prob_T1: Tensor | float = 1.0) -> Tensor:
        """`prob_T1`: combine probability, applied before the down projection as Megatron-Core's experts do."""
        h = self.activation(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj((h * prob_T1).to(x.dtype))


def route(logits_TE: Tensor, bias_E: Tensor | None, top_k: int, score_function: str) -> tuple[Tensor, Tensor]:
    """Combine probabilities [T, E] (0 where not routed) and the bool routing map [T, E].

    softmax: over the chosen top_k logits; a single one would always be 1, so top_k = 1 keeps the softmax over all.
    sigmoid: the bias moves the choice only, the chosen scores are normalised (arXiv 2408.15664).
    Source: Megatron-Core 0.16.1, `topk_routing_with_score_function`.
    """
    if score_function == "softmax":
        scores_TE = logits_TE.softmax(-1) if top_k == 1 else logits_TE
        chosen_Tk, experts_Tk = scores_TE.topk(top_k, dim=1)
        probs_Tk = chosen_Tk if top_k == 1 else chosen_Tk.softmax(-1)
    else:
        scores_TE = logits_TE.sigmoid()
        experts_Tk = (scores_TE if bias_E is None else scores_TE + bias_E).topk(top_k, dim=1).indices
        chosen_Tk = scores_TE.gather(1, experts_Tk)
        probs_Tk = chosen_Tk if top_k == 1 else chosen_Tk / (chosen_Tk.sum(-1, keepdim=True) + 1e-20)
    probs_TE = torch.zeros_like(logits_TE).scatter(1, experts_Tk, probs_Tk)
    return probs_TE, torch.zeros_like(logits_TE, dtype=torch.bool).scatter(1, experts_Tk, True)


def load_balancing_loss(logits_TE: Tensor, top_k: int, score_function: str, load_E: Tensor | None = None) -> Tensor:
    """E / (k T^2) sum_e (sum_t score[t, e]) count[e], before any drop and without the bias; 1 when balanced.

    ``load_E``: the share of routes of each expert that stands for count[e] / (k T), where it is known otherwise.
    Source: Switch, arXiv 2101.03961 eq. 4, as Megatron-Core's `switch_load_balancing_loss_func`. Scalar.
    """
    t, e = logits_TE.shape
    if score_function == "softmax":
        scores_TE = logits_TE.softmax(-1)
    else:
        scores_TE = logits_TE.sigmoid()
        scores_TE = scores_TE / (scores_TE.sum(-1, keepdim=True) + 1e-20)
    if load_E is not None:
        return e * (scores_TE.sum(0) / t * load_E).sum()
    counts_E = torch.zeros_like(scores_TE).scatter(1, scores_TE.topk(top_k, dim=1).indices, 1.0).sum(0)
    return e / (top_k * t * t) * (scores_TE.sum(0) * counts_E).sum()


def router_z_loss(logits_TE: Tensor) -> Tensor:
    """mean_t logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906 eq. 5). Scalar."""
    return logits_TE.logsumexp(-1).square().mean()


def updated_expert_bias(bias_E: Tensor, counts_E: Tensor, rate: float) -> Tensor:
    """bias + rate * sign(mean(count) - count) (arXiv 2408.15664, Algorithm 1); counts of one optimizer step."""
    counts_E = counts_E.to(bias_E.device, bias_E.dtype)
    return bias_E + rate * (counts_E.mean() - counts_E).sign()


@dataclass(frozen=True)
class Routing:
    """What one MoE layer decided in one forward pass.

    ``counts_E``: tokens routed to each expert, before dropping (int64 [E]). ``dropped``: routes lost to capacity.
    ``tokens``: that were routed. ``aux``, ``z``: the layer's losses with their coefficients, means over them (scalars).
    ``over_step``: whether the balance loss is that of a step's tokens, not the mean over its micro-batches.
    """

    counts_E: Tensor
    dropped: int
    tokens: int
    aux: Tensor
    z: Tensor
    over_step: bool

    def share(self, tokens: int, micro_batches: int) -> Tensor:
        """This micro-batch's part of a step's routers' losses. ``tokens``: that the layer routes in the step."""
        weight = self.tokens / max(tokens, 1)
        return weight * self.z + (weight if self.over_step else 1 / micro_batches) * self.aux


class RoutingInput(NamedTuple):
    """What an MoE layer is told of a micro-batch beside its hidden states.

    ``capacity_factor``: None is dropless. ``padding_BS``: bool, True on padding, which goes to no expert and counts in
    no loss; None has none.
    """

    capacity_factor: float | None = None
    padding_BS: Tensor | None = None

    def at(self, positions_BA: Tensor) -> RoutingInput:
        """The same for some positions of each row."""
        if self.padding_BS is None:
            return self
        rows = self.padding_BS.shape[0]
        return self._replace(padding_BS=self.padding_BS.gather(1, positions_BA.expand(rows, -1)))


DROPLESS = RoutingInput()


class Router(nn.Module):
    """Logits in fp32, and state that is no parameter and never rounded.

    ``expert_bias`` [E]: under aux-loss-free balancing. ``expert_load`` [E]: each expert's share of the routes of the
    step before, where the balance loss sees whole steps.
    """

    expert_bias: Tensor | None
    expert_load: Tensor | None

    def __init__(self, config: AltUpMoEConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        biased = config.moe_expert_bias_update_rate > 0
        self.register_buffer("expert_bias", torch.zeros(config.num_experts, dtype=torch.float32) if biased else None)
        equal = torch.full((config.num_experts,), 1 / config.num_experts, dtype=torch.float32)
        self.register_buffer("expert_load", equal if config.balances_steps else None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Router:
        kept = {name: buffer for name, buffer in self.named_buffers(recurse=False) if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            setattr(self, name, never_halved(fn)(buffer))
        return self

    def forward(self, x_TD: Tensor) -> Tensor:
        return full(x_TD) @ full(self.weight).t()

    @torch.no_grad()
    def step_taken(self, counts_E: Tensor, bias_update_rate: float) -> None:
        """After an optimizer step: the bias moves towards balance, and the loads are those of the step.

        Args:
            counts_E: tokens routed to each expert (before dropping), summed over the global batch.
        """
        if self.expert_bias is not None:
            self.expert_bias.copy_(updated_expert_bias(self.expert_bias, counts_E, bias_update_rate))
        if self.expert_load is not None:
            self.expert_load.copy_(counts_E / counts_E.sum())


class MoE(nn.Module):
    """Sparse experts: each token's output is the sum of its top_k experts', weighted, plus the shared expert's."""

    def __init__(self, config: AltUpMoEConfig) -> None:
        super().__init__()
        self.config = config
        self.router = Router(config)
        d, act = config.hidden_size, config.hidden_act
        experts = (GatedMLP(d, config.moe_intermediate_size, act) for _ in range(config.num_experts))
        self.experts = nn.ModuleList(experts)
        shared = config.moe_shared_expert_size
        self.shared_expert = GatedMLP(d, shared, act) if shared else None

    def forward(self, x_BSD: Tensor, given: RoutingInput) -> tuple[Tensor, Routing]:
        config, (b, s, d) = self.config, x_BSD.shape
        x_TD = x_BSD.transpose(0, 1).reshape(s * b, d)
        logits_TE = self.router(x_TD)
        bias_E, k, scoring = self.router.expert_bias, config.num_experts_per_tok, config.moe_score_function
        probs_TE, map_TE = route(logits_TE, bias_E, k, scoring)
        if given.padding_BS is None:
            real_T = torch.ones(s * b, dtype=torch.bool, device=x_BSD.device)
        else:
            real_T = ~given.padding_BS.expand(b, s).t().reshape(-1)
        map_TE = map_TE & real_T[:, None]
        counts_E, dropped = map_TE.sum(0), 0
        if given.capacity_factor is not None:
            capacity = expert_capacity(int(real_T.sum()), k, config.num_experts, given.capacity_factor)
            kept_TE = keep_within_capacity(probs_TE, map_TE, capacity)
            dropped = int((map_TE & ~kept_TE).sum())
            map_TE = kept_TE

        y_TD = torch.zeros_like(x_TD)
        for e, expert in enumerate(self.experts):  # an idle expert runs on no tokens: its gradient is 0, not None
            mine = map_TE[:, e].nonzero().squeeze(1)
            y_TD = y_TD.index_add(0, mine, expert(x_TD[mine], probs_TE[mine, e, None]))
        if self.shared_expert is not None:
            y_TD = y_TD + self.shared_expert(x_TD)

        logits_TE = logits_TE[real_T]
        aux, z = logits_TE.sum(), logits_TE.sum()  # of no tokens: zero, with a gradient
        if len(logits_TE):
            aux = config.moe_aux_loss_coeff * load_balancing_loss(logits_TE, k, scoring, self.router.expert_load)
            z = config.moe_z_loss_coeff * router_z_loss(logits_TE)
        return y_TD.view(s, b, d).transpose(0, 1), Routing(
            counts_E, dropped, len(logits_TE), aux, z, config.balances_steps
        )
