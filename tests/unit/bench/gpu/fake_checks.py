"""Checks that end in every way, in the place of the real ones, and the process that runs one of them."""

from __future__ import annotations

import os
import signal
import sys
import time

from altup_moe.bench.gpu import child
from altup_moe.bench.gpu.checks import Check
from altup_moe.bench.gpu.results import Figure, Found
from altup_moe.bench.gpu.sizes import Sizes


def fine(sizes: Sizes) -> Found:
    return Found([Figure("a bound that is kept", 0.5, at_most=1.0, exact=True)], ["a note"], {"device": sizes.device})


def slow(sizes: Sizes) -> Found:
    return Found([Figure("a speed", 0.5, "x", at_least=0.85)])


def wrong(sizes: Sizes) -> Found:
    return Found([Figure("an error", float("nan"), at_most=1.0, exact=True)])


def raises(sizes: Sizes) -> Found:
    raise ZeroDivisionError("of the check")


def crashes(sizes: Sizes) -> Found:
    os.kill(os.getpid(), signal.SIGKILL)
    return Found()


def hangs(sizes: Sizes) -> Found:
    time.sleep(100)
    return Found()


def stops(sizes: Sizes) -> Found:
    """No thread of the process runs any more."""
    os.kill(os.getpid(), signal.SIGSTOP)
    return Found()


NAMES = ("fine", "slow", "wrong", "raises", "crashes", "hangs", "stops")
SECONDS = {"hangs": 20.0, "stops": 2.0}
CHECKS = {name: Check("fake_checks", name, SECONDS.get(name, 60.0), "for tests") for name in NAMES}

if __name__ == "__main__":
    sys.modules["altup_moe.bench.gpu.fake_checks"] = sys.modules["__main__"]
    child.CHECKS.clear()
    child.CHECKS.update(CHECKS)
    child.main(*sys.argv[1:])
