"""T5's buckets of relative distances (arXiv 1910.10683, section 2.1). Pure."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def relative_buckets(distances: Tensor, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """The bucket of every distance (key position - query position), int64 of the same shape.

    Half of the buckets hold one distance each, the other half grow logarithmically up to `max_distance`, beyond which
    all is one bucket. Bidirectional: the upper half of all buckets is for keys after the query; else these share
    bucket 0 (a causal mask hides them).

    The logarithm is taken in fp32, in transformers' order: a bucket's edge may lie on a rounding.
    """
    after = torch.zeros_like(distances)
    if bidirectional:
        buckets //= 2
        after = (distances > 0) * buckets
        steps = distances.abs()
    else:
        steps = (-distances).clamp(min=0)
    single = buckets // 2
    growth = torch.log(steps.float() / single) / math.log(max_distance / single) * (buckets - single)
    # Distance 0 gives -inf, which no integer holds; it is a single one anyway.
    far = single + growth.clamp(min=0).long()
    return after + torch.where(steps < single, steps, far.clamp(max=buckets - 1))
