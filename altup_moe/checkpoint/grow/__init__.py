"""A checkpoint of a small model as the start of a larger one."""
