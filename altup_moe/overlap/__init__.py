"""Overlap of computation and communication: started collectives, deferred work, two-batch overlap."""
