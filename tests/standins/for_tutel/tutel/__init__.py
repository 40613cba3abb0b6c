"""Stands in for the package tutel, which is on no index: what our adapter calls of it, in plain torch."""
