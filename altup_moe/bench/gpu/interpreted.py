"""What Triton's interpreter can show of the kernels, in a rehearsal."""

from __future__ import annotations

from functools import cache

import torch

from altup_moe.altup.kernels import kernel

NOT_REHEARSED = (
    "Gradients of a matrix for each token: not rehearsed, the interpreter of this Triton cannot run their loop with "
    "this numpy (Triton 3.7 can). A GPU compiles it."
)


@cache
def runs_token_gradients(device: torch.device) -> bool:
    """Whether the gradients of a matrix for each token run here: always on a GPU, where they are compiled."""
    if device.type == "cuda":
        return True
    from triton.runtime.errors import InterpreterError

    ones = torch.ones(1, 1, 1)
    try:
        kernel("triton", device).token_backward(ones, ones, None, ones)
    except InterpreterError:
        return False
    return True
