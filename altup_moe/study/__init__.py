"""Measurements of the trainer: benchmarks whose figures the README quotes."""
