"""How a model is spread over ranks: the platform, the topology, what a rank owns, and the seeds."""
