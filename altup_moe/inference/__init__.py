"""What a finished run is for: load it, generate, evaluate, answer tasks, compare with models of the hub."""
