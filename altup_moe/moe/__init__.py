"""Sparse experts: the capacity rule, and the router that applies it inside Megatron's MoE layer."""
