"""AltUp + Mixture-of-Experts Transformers on Megatron-Core."""
