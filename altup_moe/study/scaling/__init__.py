"""Scaling laws of studies: the fit, its intervals, the largest size held out, and the compute multiplier."""
