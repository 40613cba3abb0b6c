"""Names of tensors in Hugging Face files. Pure.

Our global names are Llama's except for experts and routers; the encoder-decoder has names of its own.
"""

from __future__ import annotations

import re

_ROUTER = re.compile(r"(model\.layers\.\d+)\.mlp\.router\.weight")
_EXPERT = re.compile(r"(model\.layers\.\d+)\.mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")
_MIXTRAL = {"gate": "w1", "down": "w2", "up": "w3"}
_RECOMPUTED = re.compile(
    r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
    r"|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)
_T5_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(\w+)(?:\.(\w)\w*_proj)?\.weight")
_T5_STACK = {
    "norm": "final_layer_norm",
    "relative_attention_bias": "block.0.layer.0.SelfAttention.relative_attention_bias",
}
_T5_MLP = {"g": "wi_0", "u": "wi_1", "d": "wo"}


def hub_name(name: str, family: str) -> str:
    """The name of a global tensor in the files of a family (`hf.config.FAMILIES`, or ``t5``)."""
    if family == "t5":
        return _t5_name(name)
    router, expert = _ROUTER.fullmatch(name), _EXPERT.fullmatch(name)
    if router:
        return f"{router[1]}.{'block_sparse_moe' if family == 'mixtral' else 'mlp'}.gate.weight"
    if expert and family == "mixtral":
        return f"{expert[1]}.block_sparse_moe.experts.{expert[2]}.{_MIXTRAL[expert[3]]}.weight"
    return name


def is_redundant(name: str) -> bool:
    """Whether a tensor of a file is not needed: RoPE frequencies in old Llama files, and in old T5 files a bias of
    cross-attention that the model does not use."""
    return _RECOMPUTED.fullmatch(name) is not None


def _t5_name(name: str) -> str:
    """T5 v1.1's name of a tensor of the plain dense encoder-decoder."""
    layer = _T5_LAYER.fullmatch(name)
    if layer is None:
        stack, _, rest = name.partition(".")
        leaf = rest.removesuffix(".weight")
        return f"{stack}.{_T5_STACK[leaf]}.weight" if leaf in _T5_STACK else name
    stack, number, module, letter = layer.groups()
    last = 1 if stack == "encoder" else 2
    inside = {
        "input_layernorm": "0.layer_norm",
        "self_attn": f"0.SelfAttention.{letter}",
        "cross_attn_layernorm": "1.layer_norm",
        "cross_attn": f"1.EncDecAttention.{letter}",
        "post_attention_layernorm": f"{last}.layer_norm",
        "mlp": f"{last}.DenseReluDense.{_T5_MLP.get(letter, letter)}",
    }[module]
    return f"{stack}.block.{number}.layer.{inside}.weight"


def tied_copies(family: str, tied: bool) -> dict[str, str]:
    """Name in the file -> global name of the tensor it must equal, for tied tensors that a file may repeat."""
    table = "shared.weight" if family == "t5" else "model.embed_tokens.weight"
    stacks = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight") if family == "t5" else ()
    return dict.fromkeys((*stacks, *(("lm_head.weight",) if tied else ())), table)
