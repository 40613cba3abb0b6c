"""`altup-moe` whose rank FAILING_RANK (1) fails in the fourth step of every start: `FAIL=raise|kill python failing.py`.

With STOP the other rank has been stopped by then (SIGSTOP), and hears nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from altup_moe.cli import main
from altup_moe.config.imports import without_collections
from altup_moe.parallel.compile_later import compile_later

with without_collections(), compile_later():  # as the command does
    from altup_moe.parallel import release
    from altup_moe.train import run

STEP = 4

if __name__ == "__main__":
    original, let_go = run.train_step, release.release
    mine = os.environ["RANK"] == os.environ.get("FAILING_RANK", "1")

    def train_step(engine: Any, batches: Any, config: Any, topology: Any, *rest: Any) -> Any:
        """The step itself, survived or not."""
        count[0] += 1
        if count[0] == STEP and not mine and os.environ.get("STOP"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if count[0] == STEP and mine:
            if os.environ["FAIL"] == "kill":
                time.sleep(2)  # the other one stops first
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("as the test asks")
        return original(engine, batches, config, topology, *rest)

    def release_slowly(**options: Any) -> None:
        """Close connections, and take a second over the rest, as unloading torch does on a busy machine."""
        let_go(**options)
        if mine:
            time.sleep(1)

    count = [0]
    run.train_step = train_step
    release.release = release_slowly
    sys.exit(main())
