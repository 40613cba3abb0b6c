"""Conversion between a run's checkpoint and Hugging Face's directory of a model."""
