"""Work that a device does whatever it computes: numbers put there without waiting, and compiled functions."""
