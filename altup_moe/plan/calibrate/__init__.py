"""Measure a machine for the planner. Only this subpackage of `altup_moe.plan` runs torch."""
