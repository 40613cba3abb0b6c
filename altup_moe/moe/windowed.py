"""An exchange that leaves room: started, posted work done, the other half of the micro-batch let on, waited for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from altup_moe.moe.exchange import AllToAll, start, wait
from altup_moe.moe.halves import step_aside
from altup_moe.moe.window import run_posted


def exchange_rows(exchange: AllToAll, tensors: Sequence[Tensor], overlap: bool) -> list[Tensor]:
    """What arrives of each tensor [rows, ...]. Without `overlap` it is waited for first, and posted work done after."""
    flights = [start(tensor, exchange) for tensor in tensors]
    if not overlap:
        arrived = [wait(flight) for flight in flights]
        run_posted()
        return arrived
    run_posted()
    step_aside()
    return [wait(flight) for flight in flights]
