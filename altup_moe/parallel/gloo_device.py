"""One gloo device for the groups of a topology: one thread that serves all connections of this rank.

torch gives each group a device of its own. The thread of a device wakes a hundred times a second, also while nothing
travels; a topology has some eighteen groups. The threads that run collectives (two a group) sleep without waking.
"""

from __future__ import annotations

import functools
import os
from datetime import timedelta
from typing import Any

from torch.distributed import ProcessGroupGloo

from altup_moe.parallel.patches import replace
from altup_moe.parallel.release import at_end

INIT = "torch.distributed.distributed_c10d:ProcessGroupGloo.__init__"
_devices: dict[str | None, list[Any]] = {}
"""What groups share now, by the interfaces that the environment names for gloo."""


@functools.cache
def share_device() -> None:
    """Have the groups that are made from now on share a device, until the topology in use ends; once a process.

    The first group makes it, as torch does (GLOO_SOCKET_IFNAME, the machine's name); the others take it from there.
    """
    theirs: Any = ProcessGroupGloo.__init__

    def init(self: Any, store: Any, rank: int, size: int, *rest: Any, **named: Any) -> None:
        timeout = named.get("timeout", rest[0] if rest else None)
        interfaces = os.environ.get("GLOO_SOCKET_IFNAME")
        if interfaces in _devices and isinstance(timeout, timedelta):
            options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
            options._devices = _devices[interfaces]
            options._threads = 2 * len(options._devices)
            options._timeout = timeout
            theirs(self, store, rank, size, options)
            return
        theirs(self, store, rank, size, *rest, **named)
        if not _devices:
            # A device lives as long as its groups do.
            at_end(_devices.clear)
        _devices.setdefault(interfaces, self.options._devices)

    replace(INIT, init)
