"""Recordings of a rank's steps: spans, how much of the exchange overlaps with computation, traces and pictures."""
