"""muP: how a parameter's initial values, rate and weight decay follow from the size of the model.

With the maximal update parametrization (muP, Yang et al., arXiv 2203.03466) the best learning rate of a small model is
that of a wide one; with CompleteP's rule for depth (Dey et al., arXiv 2505.01618, alpha = 1) that of a deep one too.
Both are mostly written with multipliers in the forward pass. For AdamW a multiplier c of a parameter is the same model
as the parameter itself c times as large, moved c times as far a step (Yang et al., appendix on the abc-symmetry; up to
Adam's epsilon). So here nothing multiplies in the forward pass: a checkpoint, an export or a plan of such a model is
that of any other.

With m = hidden_size / optim.mup_base_hidden_size and l = num_layers / optim.mup_base_num_layers (1 if that is null):

| kind | which | initial values | rate | weight decay |
|---|---|---|---|---|
| table | embedding, output layer | 1 | 1 | 1 |
| hidden | q, k, v, gate and up projections, of experts too; ends of a dynamic stream; gates | m^-1/2 | 1/m | m |
| residual | o and down projections, which write into the stream | (m l)^-1/2 | 1/(m l) | m l |
| router | of experts; what computes a token's coefficients from the whole stream | 1/m | 1/m | m |
| final_norm | the norm before the output layer, for the logits' multiplier 1/m | 1/m | 1/m | none |
| other | norms, coefficients of the stream | 1 | 1 | as without |

The factors multiply what holds without muP, where residual projections start with std / sqrt(2 num_layers): with l
they start with std / sqrt(2 base layers) / l. At the base size all of them are 1. Weight decay times rate is the same
at all sizes. Coefficients mix whole blocks: each is one of a fixed number of weights of a sum, whatever the width, and
so are the weights of a dynamic stream, whose router divides by the width itself. The width of attention heads is taken
to be the same at all sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from altup_moe.altup.coefficients import Coefficient
from altup_moe.altup.variants import find_variant
from altup_moe.config import RunConfig

Kind = Literal["table", "hidden", "residual", "router", "final_norm", "other"]
_KINDS: dict[str, Kind] = {
    **dict.fromkeys(("embed_tokens", "lm_head"), "table"),
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), "hidden"),
    **dict.fromkeys(("o_proj", "down_proj"), "residual"),
    "router": "router",
}


@dataclass(frozen=True)
class Factors:
    """What multiplies a parameter's initial values, its learning rate, and its weight decay."""

    initial: float = 1.0
    rate: float = 1.0
    decay: float = 1.0


def coefficient_of(name: str, config: RunConfig) -> Coefficient | None:
    """The row of a coefficient of the stream, or of what collapses its blocks, by its global name; else None."""
    row, leaf = find_variant(config.altup.variant), name.rpartition(".")[2]
    if ".altup." in name:
        return row.coefficients[leaf]
    return row.head[leaf] if name.startswith("model.altup_head.") else None


def kind_of(name: str, config: RunConfig) -> Kind:
    """What a parameter is, by its global name."""
    coefficient = coefficient_of(name, config)
    if coefficient is not None:
        return coefficient.kind
    if ".sequence." in name:
        return "other"
    if name == "model.norm.weight":
        return "final_norm"
    if name.startswith(("model.altup_projections.", "model.altup_unembed_projections.")):
        return "hidden"
    parts = name.split(".")
    return _KINDS.get(parts[-2] if parts[-1] == "weight" else parts[-1], "other")


def factors(kind: Kind, config: RunConfig) -> Factors:
    """Factors of a kind in a run; all 1 with parametrization standard."""
    optim = config.optim
    if optim.parametrization == "standard":
        return Factors()
    assert optim.mup_base_hidden_size is not None
    wider = config.model.hidden_size / optim.mup_base_hidden_size
    deeper = config.model.num_layers / (optim.mup_base_num_layers or config.model.num_layers)
    match kind:
        case "hidden":
            return Factors(wider**-0.5, 1 / wider, wider)
        case "residual":
            more = wider * deeper
            return Factors(more**-0.5, 1 / more, more)
        case "router" | "final_norm":
            return Factors(1 / wider, 1 / wider, wider)
    return Factors()
