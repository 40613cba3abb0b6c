"""The two layers that are used, and names that are imported."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transformer_engine.pytorch import distributed, fp8, ops, router, tensor  # noqa: F401


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight; the weight carries the tag that sequence parallelism asks for."""

    def __init__(
        self,
        normalized_shape: int | None = None,
        hidden_size: int | None = None,
        *,
        eps: float,
        sequence_parallel: bool,
        params_dtype: torch.dtype,
        device: Any,
        zero_centered_gamma: bool = False,
    ) -> None:
        super().__init__()
        assert not zero_centered_gamma
        self.eps = eps
        hidden_size = normalized_shape or hidden_size  # the newer name, the older one
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=params_dtype, device=device))
        self.weight.sequence_parallel = sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class GroupedLinear(nn.Module):
    """N linears, each on its own consecutive rows: parameters weight0 ... weightN-1, [out, in]."""

    def __init__(
        self,
        num_gemms: int,
        in_features: int,
        out_features: int,
        bias: bool,
        return_bias: bool,
        params_dtype: torch.dtype,
        device: Any,
        tp_size: int,
        **_: Any,
    ) -> None:
        super().__init__()
        assert not bias
        assert not return_bias
        assert tp_size == 1
        self.num_gemms = num_gemms
        for n in range(num_gemms):
            weight = nn.Parameter(torch.empty(out_features, in_features, dtype=params_dtype, device=device))
            self.register_parameter(f"weight{n}", weight)

    def forward(self, x: Tensor, m_splits: list[int], is_first_microbatch: bool | None = None) -> Tensor:
        assert len(m_splits) == self.num_gemms
        rows = x.split(m_splits)
        return torch.cat([F.linear(part, getattr(self, f"weight{n}")) for n, part in enumerate(rows)])


class Linear(nn.Module):
    """A base class, never made."""


class LayerNormLinear(nn.Module):
    """A base class, never made."""


class DotProductAttention(nn.Module):
    """A base class, never made."""
