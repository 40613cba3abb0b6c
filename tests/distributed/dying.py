"""`altup-moe` whose rank 1 dies in the middle of the first start's ninth step: `python dying.py train ...`."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from typing import Any

from altup_moe.cli import main
from altup_moe.config.imports import without_collections
from altup_moe.parallel.compile_later import compile_later

with without_collections(), compile_later():  # as the command does
    from altup_moe.train import run

STEP = 9

if __name__ == "__main__":
    original, numbers = run.train_step, itertools.count(1)

    def train_step(*args: Any, **kwargs: Any) -> Any:
        """The step itself, survived or not."""
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if next(numbers) == STEP and first and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    run.train_step = train_step
    sys.exit(main(sys.argv[1:]))
