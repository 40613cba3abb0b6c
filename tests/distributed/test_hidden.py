"""What really overlaps on a slow network: the recorded spans of `bench overlap` between two nodes of a netlab.

This is the test that a blocking exchange fails: the same figures are asked of both kinds, and only one may reach them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from altup_moe.launch import netlab

ROOT = Path(__file__).parents[2]
REASON = netlab.unavailable()

pytestmark = [
    pytest.mark.long,
    pytest.mark.distributed,
    pytest.mark.timeout(240),
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
]

SIZES = [
    "--widths",
    "4",
    "--correct",
    "next",
    "delayed",
    "--hidden-size",
    "128",
    "--num-layers",
    "2",
    "--seq-length",
    "128",
    "--repeats",
    "1",
]
# Shares are of medians: mixing takes milliseconds, and a busy machine takes the core away for as long now and then.
SIZES += ["--recorded", "5"]


@pytest.fixture(scope="module")
def modes() -> dict[tuple[str, str, bool], dict]:
    """Figures by (mixing, exchange, halves), and "delayed" where outputs are."""
    command = [sys.executable, "-m", "altup_moe.cli", "bench", "overlap", *SIZES, "--json"]
    netlab_command = [sys.executable, str(ROOT / "launch" / "netlab"), "--nodes", "2", "--rate", "50mbit", "--"]
    done = subprocess.run([*netlab_command, *command], capture_output=True, text=True, timeout=200, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    return {(*mode["mode"].values(), *mode["variant"].split(", ")[1:]): mode for mode in found["modes"]}


@pytest.mark.parametrize("halves", [False, True])
def test_deferred_mixing_runs_while_the_exchange_flies(modes: dict, halves: bool) -> None:
    assert modes["deferred", "async", halves]["mixing_hidden"] >= 0.9


@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("mixing", ["inline", "deferred"])
def test_a_blocking_exchange_hides_nothing(modes: dict, mixing: str, halves: bool) -> None:
    mode = modes[mixing, "blocking", halves]
    assert mode["mixing_hidden"] < 0.1
    assert mode["exchange_hidden"] < 0.1


def test_halves_hide_the_exchange_itself(modes: dict) -> None:
    whole, halves = (modes["deferred", "async", on] for on in (False, True))
    assert whole["exchange_hidden"] < 0.3
    # Of what computing lasts long enough to hide.
    assert halves["exchange_hidden"] > 0.6 * min(1.0, halves["bound"])


def test_delayed_outputs_hide_the_exchange_itself(modes: dict) -> None:
    """Without halves; one by one, which a blocking exchange makes of them, layers hide nothing."""
    two_steps = modes["deferred", "async", False, "delayed"]
    assert two_steps["exchange_hidden"] > 0.6 * min(1.0, two_steps["bound"])
    for mixing in ("inline", "deferred"):
        assert modes[mixing, "blocking", False, "delayed"]["exchange_hidden"] < 0.1
