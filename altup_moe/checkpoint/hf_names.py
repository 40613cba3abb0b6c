"""Names of tensors in the files of a hub. Ours are Llama's; only experts and routers are called differently. Pure."""

from __future__ import annotations

import re

_ROUTER = re.compile(r"(model\.layers\.\d+)\.mlp\.router\.weight")
_EXPERT = re.compile(r"(model\.layers\.\d+)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")
_MIXTRAL = {"gate": "w1", "down": "w2", "up": "w3"}
_RECOMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def hub_name(name: str, family: str) -> str:
    """The name of a global tensor in the files of a family (`hf_config.FAMILIES`)."""
    router, expert = _ROUTER.fullmatch(name), _EXPERT.fullmatch(name)
    if router:
        return f"{router[1]}.{'block_sparse_moe' if family == 'mixtral' else 'mlp'}.gate.weight"
    if expert and family == "mixtral":
        return f"{expert[1]}.block_sparse_moe.experts.{expert[2]}.{_MIXTRAL[expert[3]]}.weight"
    return name


def recomputed(name: str) -> bool:
    """Whether a tensor of a file follows from the configuration (old Llama files hold RoPE's frequencies)."""
    return _RECOMPUTED.fullmatch(name) is not None
