"""`altup-moe` with slow steps while a file is there, to be interrupted: `python paced.py FILE train ...`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from altup_moe.cli import main
from altup_moe.config.imports import without_collections
from altup_moe.parallel.compile_later import compile_later

with without_collections(), compile_later():  # as the command does
    from altup_moe.train import run

SECONDS = 0.7

if __name__ == "__main__":
    original, file = run.train_step, Path(sys.argv[1])

    def train_step(*args: Any, **kwargs: Any) -> Any:
        """The step itself, later."""
        if file.exists():
            time.sleep(SECONDS)
        return original(*args, **kwargs)

    run.train_step = train_step
    sys.exit(main(sys.argv[2:]))
