"""What a case may change in its process, and how a rank has it back as it was before the next one."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import warnings
from contextlib import suppress

import numpy as np
import torch
import torch.distributed as dist

from altup_moe.parallel import compat, cpu, release

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)


class State:
    """A process's state when it was made; `restore` brings it back.

    Covered: random streams, torch's defaults, the environment, the working directory, the search path, warnings,
    logging, signals, standard output, process groups and what Megatron keeps with them. Not covered: attributes of
    modules and classes; a case that sets any sets them back, or runs on fresh ranks.
    """

    def __init__(self) -> None:
        torch.set_num_threads(1)
        # These patch once a process, and stay.
        cpu.enable()
        compat.mend_megatron()
        # What is here stays: the collector need not look at it after every case.
        gc.collect()
        gc.freeze()
        self._environment = dict(os.environ)
        self._path, self._directory = list(sys.path), os.getcwd()
        self._random = random.getstate(), np.random.get_state(), torch.get_rng_state()
        self._warnings = list(warnings.filters)
        self._signals = {number: signal.getsignal(number) for number in SIGNALS}
        root = logging.getLogger()
        self._logging = list(root.handlers), list(root.filters), root.level, logging.root.manager.disable

    def restore(self) -> None:
        """Undo what a case did."""
        if dist.is_initialized():
            dist.destroy_process_group()
        release.release(keep=[])
        os.environ.clear()
        os.environ.update(self._environment)
        os.chdir(self._directory)
        sys.path[:] = self._path
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        random.setstate(self._random[0])
        np.random.set_state(self._random[1])
        torch.set_rng_state(self._random[2])
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.use_deterministic_algorithms(False)
        warnings.filters[:] = self._warnings
        warnings._filters_mutated()  # type: ignore[attr-defined]
        for number, handler in self._signals.items():
            signal.signal(number, handler)
        self._restore_logging()

    def _restore_logging(self) -> None:
        root = logging.getLogger()
        handlers, filters, root.level, logging.root.manager.disable = self._logging
        for handler in root.handlers:
            if handler not in handlers:
                with suppress(Exception):
                    handler.close()
        root.handlers[:], root.filters[:] = handlers, filters
