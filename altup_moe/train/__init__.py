"""The training run: samples, step, optimizer, loop, validation, logs, and what reads a finished run."""
