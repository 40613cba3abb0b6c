"""The model: a plain PyTorch reference, and the same model on Megatron-Core."""
