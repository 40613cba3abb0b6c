"""What a run would cost on a cluster, by arithmetic alone: no process group, no tensor, no torch."""
