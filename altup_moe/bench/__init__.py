"""Benchmarks of the trainer's parts, whose figures the README quotes."""
