"""Studies on a SLURM cluster: rows as tasks of job arrays."""
