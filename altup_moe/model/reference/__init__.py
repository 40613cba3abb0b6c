"""The same models in plain PyTorch on one process: the oracle of every parallel path, and what exports contain.

Importing this package teaches transformers' Auto classes the types `altup_moe` and `altup_moe_t5`.
"""

from altup_moe.model.reference.gpt import AltUpMoEForCausalLM
from altup_moe.model.reference.t5 import AltUpMoEForConditionalGeneration

__all__ = ["AltUpMoEForCausalLM", "AltUpMoEForConditionalGeneration"]
