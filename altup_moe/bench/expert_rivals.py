"""Feed-forwards that `bench experts` times: ours under every backend, a dense MLP, transformers' Mixtral block.

All have the same router weight and input, made so that the routing is the one planned: the first E features of token t
hold E scores, the router picks feature e as expert e's logit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from altup_moe.bench.options import ExpertsBench
from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, ParallelConfig, RunConfig, TrainConfig
from altup_moe.config.packages import PACKAGES
from altup_moe.model.build import build_chunk, set_weights
from altup_moe.moe.backends import BACKENDS
from altup_moe.parallel.topology import Topology

PlannedRouting = Literal["balanced", "skewed"]
DENSE_MLP = "dense MLP of equal active FLOPs"
OUR_LAYER = "torch backend, loop"
TOP_K = 2


@dataclass(frozen=True)
class LayerContender:
    """One feed-forward. ``forward``: [S, B, D] -> [S, B, D], with the weights of ``module``."""

    name: str
    module: nn.Module
    forward: Callable[[Tensor], Tensor]


class DenseMLP(nn.Module):
    """A gated MLP as wide as the experts that one token passes."""

    def __init__(self, hidden: int, ffn: int) -> None:
        super().__init__()
        self.fc1 = nn.Parameter(torch.randn(2 * ffn, hidden) * 0.02)
        self.fc2 = nn.Parameter(torch.randn(hidden, ffn) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        gate, up = F.linear(x, self.fc1).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.fc2)


def layer_config(bench: ExpertsBench, backend: Any, capacity: float | None, ranks: int) -> RunConfig:
    """A model of one MoE layer whose experts lie on all ranks, without losses of its own."""
    model = ModelConfig(
        num_layers=1, hidden_size=bench.hidden_size, num_attention_heads=4, num_query_groups=4, seq_length=bench.tokens,
        vocab_size=64,
    )  # fmt: skip
    moe = MoEConfig(
        num_experts=bench.moe_experts, ffn_hidden_size=bench.ffn_hidden_size, top_k=TOP_K, aux_loss_coeff=0.0,
        backend=backend, capacity_factor=capacity,
    )  # fmt: skip
    train = TrainConfig(micro_batch_size=1, global_batch_size=ranks, precision=bench.dtype)
    return RunConfig(model, AltUpConfig(width=1), moe, ParallelConfig(expert=ranks), train=train)


def planned_input(bench: ExpertsBench, routing: PlannedRouting) -> Tensor:
    """[T, 1, D]: token t prefers expert t mod E (skewed: expert 0), then another one, evenly among the rest."""
    tokens, experts = bench.tokens, bench.moe_experts
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(tokens, bench.hidden_size, generator=generator)
    t = torch.arange(tokens)
    first = t % experts if routing == "balanced" else torch.zeros_like(t)
    # Neighbouring tokens go to different experts, so that an expert's rows lie far apart.
    second = (first + 1 + (t // experts) % (experts - 1)) % experts
    x_TD[:, :experts] = 0
    x_TD[t, first], x_TD[t, second] = 2.0, 1.0
    return x_TD[:, None]


def router_weight(bench: ExpertsBench) -> Tensor:
    """Router weight, [E, D]: the logit of expert e is feature e."""
    return torch.eye(bench.moe_experts, bench.hidden_size)


def layer_contenders(bench: ExpertsBench, topo: Topology) -> list[LayerContender]:
    """Every feed-forward that can be measured with the installed packages."""
    torch.manual_seed(0)
    dense = DenseMLP(bench.hidden_size, TOP_K * bench.ffn_hidden_size)
    dtype = torch.bfloat16 if bench.dtype == "bf16" else torch.float32
    found = [LayerContender(DENSE_MLP, dense.to(dtype), dense.forward)]
    for name in BACKENDS:
        package = PACKAGES.get(name)
        if package is None or package.found():
            found += _ours(bench, name, topo)
    found += [_mixtral(bench, how, dtype) for how in ("eager", "grouped_mm")]
    for contender in found:
        contender.module.to(topo.device)
    return found


def missing() -> list[str]:
    """One line for each backend that is not measured."""
    lines = []
    for name, package in PACKAGES.items():
        if problem := package.problem():
            lines.append(f"not measured: {name} {problem} ({package.install})")
        elif name not in BACKENDS:
            lines.append(f"not measured: {name} has no adapter")
    return lines


def _ours(bench: ExpertsBench, name: str, topo: Topology) -> list[LayerContender]:
    if name == "torch":
        ways = []
        for how in ("loop", "grouped_mm"):
            layer = _layer(bench, name, None, topo)
            layer.experts.how = how
            ways.append(_contender(f"torch backend, {how}", layer))
        return ways
    capacities = {"": None, ", capacity 1": 1.0} if name == "deepspeed" else {"": None}
    return [_contender(f"{name} backend{text}", _layer(bench, name, c, topo)) for text, c in capacities.items()]


def _contender(name: str, layer: Any) -> LayerContender:
    # The layer returns (output, bias); the bias is None.
    return LayerContender(name, layer, lambda x: layer(x)[0])


def _layer(bench: ExpertsBench, name: str, capacity: float | None, topo: Topology) -> Any:
    config = layer_config(bench, name, capacity, topo.world_size)
    chunk = build_chunk(config, topo, None)
    set_weights([chunk], config, topo)
    layer: Any = chunk.decoder.layers[0].mlp
    with torch.no_grad():
        layer.router.weight.copy_(router_weight(bench))
    return layer.train()


def _mixtral(bench: ExpertsBench, how: str, dtype: torch.dtype) -> LayerContender:
    from transformers.models.mixtral.configuration_mixtral import MixtralConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    config = MixtralConfig(
        hidden_size=bench.hidden_size, intermediate_size=bench.ffn_hidden_size, num_local_experts=bench.moe_experts,
        num_experts_per_tok=TOP_K, router_jitter_noise=0.0,
    )  # fmt: skip
    config._experts_implementation = how
    block = MixtralSparseMoeBlock(config)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.02)
        block.gate.weight.copy_(router_weight(bench))
    return LayerContender(f"transformers' Mixtral block, {how}", block.to(dtype).train(), block.forward)
