"""`altup-moe bench gpu`: all that only a GPU can show, in pieces. See `altup_moe.bench.gpu`."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from altup_moe.bench.gpu.machine import find_machine
from altup_moe.bench.gpu.options import GpuBench
from altup_moe.bench.gpu.planned import Planner
from altup_moe.bench.gpu.runner import any_bad, open_results, run_checks
from altup_moe.config import UserError
from altup_moe.config.exit_codes import EXIT_FAILED
from altup_moe.config.os_errors import naming


def bench_gpu(options: GpuBench, planner: Planner) -> int:
    """Run what is missing, print it as it comes. Returns 1 if a check is bad. Raises UserError: there is no GPU."""
    machine = find_machine()
    if not (options.rehearse or machine["card"]):
        torch = machine["libraries"].get("torch", "")
        raise UserError(f"bench gpu: torch {torch} sees no GPU here; --rehearse tries everything on the CPU")
    directory = Path(options.directory)
    with naming(directory):
        directory.mkdir(parents=True, exist_ok=True)
    file = open_results(directory, options.rehearse, machine if not options.rehearse else {**machine, "card": ""})
    say = partial(print, file=sys.stderr if options.json else sys.stdout, flush=True)
    left = run_checks(options, file, planner, say)
    if options.json:
        print(json.dumps(file.to_dict()))
    else:
        say(f"{file.path}, {file.path.with_name('gpu.md')}")
    if left:
        say(f"left for another call of this command: {', '.join(left)}")
    return EXIT_FAILED if any_bad(file) else 0
