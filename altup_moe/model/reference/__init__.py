"""The same models in plain PyTorch on one process: the oracle of every parallel path, and what exports contain."""
