"""Checkpoints of a run: a directory of safetensors and JSON a rank, complete or absent, never a pickle."""
