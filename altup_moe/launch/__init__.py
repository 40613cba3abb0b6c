"""Ways to start a run on several nodes."""
