"""Pages of the documentation, and `docs.generate`, which writes those that repeat what the code says."""
