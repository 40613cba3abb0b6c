"""The weight of the load-balancing loss, in Hugging Face's definition and in ours. Pure.

transformers 5.23, `load_balancing_loss_func` of Mixtral and Qwen3-MoE: E sum_e f_e P_e, where f_e are the routes to
expert e a token and P_e its mean probability, both over the tokens of all layers. It is top_k when balanced.
Ours (Megatron-Core's): the sum over the layers of E / top_k sum_e f_e P_e of each layer, which is 1 when balanced.
The two are in proportion where the layers' loads are alike; pooled loads hide what layers do in opposite directions.
"""

from __future__ import annotations

from altup_moe.config import MoEConfig, RunConfig


def from_hub_balance(coefficient: float, layers: int, moe: MoEConfig) -> float:
    """`moe.aux_loss_coeff` for a `router_aux_loss_coef` of a model of so many layers, dense ones counted."""
    return _rounded(coefficient * moe.top_k / _moe_layers(layers, moe))


def to_hub_balance(config: RunConfig) -> float:
    """`router_aux_loss_coef` for the `moe.aux_loss_coeff` of a run."""
    moe = config.moe
    return _rounded(moe.aux_loss_coeff * _moe_layers(config.model.num_layers, moe) / moe.top_k)


def balance_lines(config: RunConfig) -> list[str]:
    """The line of a conversion that says what the weight became; none for a dense model."""
    moe = config.moe
    if not moe.num_experts:
        return []
    layers = _moe_layers(config.model.num_layers, moe)
    return [
        f"moe.aux_loss_coeff {moe.aux_loss_coeff:g} is router_aux_loss_coef {to_hub_balance(config):g} "
        f"x top_k {moe.top_k} / {layers} MoE layers: ours adds the layers' losses up, Hugging Face's pools their loads "
        "(and counts with output_router_logits alone)"
    ]


def _moe_layers(layers: int, moe: MoEConfig) -> int:
    return layers // moe.layer_freq


def _rounded(value: float) -> float:
    """Twelve digits, so that a weight that leaves comes back the same."""
    return float(f"{value:.12g}")
