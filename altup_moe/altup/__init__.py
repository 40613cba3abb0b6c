"""The AltUp algorithm in pure torch: what a variant is, what the wide stream is, how the two meet."""
