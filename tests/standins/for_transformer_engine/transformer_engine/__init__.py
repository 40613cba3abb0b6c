"""Stands in for Transformer Engine: names that megatron-core 0.16.1 and 0.19.2 import, its RMSNorm and GroupedLinear.

The two layers compute what the real ones are documented to compute, in plain torch, with parameters of the same names
and shapes; everything else is only there to be imported. What is tested so is our side: which layers stand in which
slots, whose pieces their parameters are, and that their gradients are reduced over the right groups.
"""

__version__ = "2.9.0"

from transformer_engine import common, pytorch  # noqa: F401
