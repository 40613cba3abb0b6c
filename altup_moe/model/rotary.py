"""Rotary position embedding as a region (`device.regions`), in the place of Megatron's chain of operations."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from altup_moe.device.regions import region
from altup_moe.parallel.patches import original, replace


def rotate(t_SBHC: Tensor, cos_S11C: Tensor, sin_S11C: Tensor) -> Tensor:
    """RoPE (arXiv 2104.09864) of queries or keys [S, B, H, C], feature i paired with i + C/2.

    Args:
        cos_S11C: cosines of the angles, in t's dtype; sines likewise.
    """
    first, second = t_SBHC.chunk(2, -1)
    (cos_1, cos_2), (sin_1, sin_2) = cos_S11C.chunk(2, -1), sin_S11C.chunk(2, -1)
    return torch.cat([first * cos_1 - second * sin_1, second * cos_2 + first * sin_2], -1)


@functools.cache
def compile_rotary() -> None:
    """Let Megatron's attention rotate by `rotate` in every layer whose configuration compiles; once a process."""
    name = "megatron.core.transformer.attention:apply_rotary_pos_emb"
    theirs = original(name)

    @functools.wraps(theirs)
    def apply(t: Tensor, freqs: Tensor, config: Any, cu_seqlens: Any = None, mscale: float = 1.0, **rest: Any) -> Any:
        whole = cu_seqlens is None and mscale == 1.0 and freqs.shape[-1] == t.shape[-1]
        if not (getattr(config, "compiled", False) and whole):
            return theirs(t, freqs, config, cu_seqlens=cu_seqlens, mscale=mscale, **rest)
        return region(True, rotate, t, freqs.cos().to(t.dtype), freqs.sin().to(t.dtype))

    replace(name, apply)
