"""The AltUp algorithm in pure torch: the variants, the wide stream, and how a layer reads and writes it."""
