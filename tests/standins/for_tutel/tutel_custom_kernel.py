"""Stands in for Tutel's compiled kernels: that it can be imported is all that is asked of it."""
