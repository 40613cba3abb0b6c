"""muP: the trainer multiplies nothing in the forward pass; a plain model that does, as in the papers, trains alike."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from altup_moe.bench.stepper import Stepper
from altup_moe.checkpoint.slices import full_slice
from altup_moe.config import RunConfig
from altup_moe.model.reference.build import reference_model
from altup_moe.model.reference.gpt import StepTotals
from altup_moe.parallel.parameter_mapping import Shard, pieces
from altup_moe.parallel.parameter_names import local_names
from altup_moe.parallel.parametrization import Factors, factors, kind_of
from altup_moe.parallel.seeds import initial
from altup_moe.parallel.topology import topology
from altup_moe.train.optim import build_scheduler
from altup_moe.train.step import train_step
from tests.distributed.cases import small

WIDER, DEEPER = 4.0, 2.0
MUP = {
    "parametrization": "mup",
    "mup_base_hidden_size": 8,
    "mup_base_num_layers": 2,
    "clip_grad": 0.0,
    "schedule": "constant",
    "warmup_steps": 0,
    "adam_eps": 1e-30,  # the two forms are one but for it
    "coefficient_lr_mult": 2.0,
}
STEPS = 6


def kinds(config: RunConfig) -> dict[str, set[str]]:
    """Kind -> last parts of the global names."""
    found: dict[str, set[str]] = {}
    for name in local_names(config, range(config.model.num_layers), True, True, config.moe.num_experts):
        for piece in pieces(name, 0, Shard(), config):
            short = ".".join(part for part in piece.name.removesuffix(".weight").split(".") if not part.isdigit())
            short = short.removeprefix("model.").removeprefix("layers.")
            found.setdefault(kind_of(piece.name, config), set()).add(short)
    return found


def test_every_parameter_has_its_kind() -> None:
    sections = {"model": {"qk_layernorm": True}, "moe": {"shared_expert_size": 16}}
    found = kinds(small("one", altup={"variant": "dynamic", "width": 4}, **sections))
    assert found["table"] == {"embed_tokens", "lm_head"}
    mlps = ("mlp", "mlp.experts", "mlp.shared_expert")
    inner = {f"{mlp}.{which}_proj" for mlp in mlps for which in ("gate", "up")}
    ends = {"altup_projections", "altup_unembed_projections"}
    assert found["hidden"] == {f"self_attn.{letter}_proj" for letter in "qkv"} | inner | ends
    assert found["residual"] == {"self_attn.o_proj", *(f"{mlp}.down_proj" for mlp in mlps)}
    assert found["router"] == {"mlp.router"}
    assert found["final_norm"] == {"norm"}
    coefficients = {f"altup.{name}" for name in ("router", "router_norm", "prediction", "correction")}
    norms = {"input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"}
    assert found["other"] == coefficients | norms


def test_at_the_base_size_nothing_changes() -> None:
    config = small("one", optim={**MUP, "mup_base_hidden_size": 32, "mup_base_num_layers": 4})
    names = ("table", "hidden", "residual", "router", "final_norm", "other")
    assert all(factors(kind, config) == Factors() for kind in names)


def test_without_a_base_depth_layers_are_as_they_were() -> None:
    config = small("one", optim={**MUP, "mup_base_num_layers": None})
    assert factors("residual", config) == factors("hidden", config) == Factors(WIDER**-0.5, 1 / WIDER, WIDER)


class AsWritten:
    """The same model with muP's and CompleteP's multipliers in the forward pass, and rates as the papers list them.

    Logits are divided by m, routers' too, and what a layer adds to the stream by l; hidden weights have the rate 1/m
    and m times the decay; all else has the base's. Weights begin as the base model's, hidden ones divided by sqrt(m).
    """

    def __init__(self, config: RunConfig) -> None:
        self.model = reference_model(config).float()
        optim = config.optim
        groups = []
        for name, parameter in self.model.named_parameters():
            value = initial(name, tuple(parameter.shape), full_slice(tuple(parameter.shape)), config)
            rate, decay = optim.learning_rate, optim.weight_decay
            if name == "model.norm.weight" or name.endswith("router.weight"):
                value = value * WIDER
            elif name.endswith("_proj.weight"):
                rate, decay = rate / WIDER, decay * WIDER
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    value = value * DEEPER
            if ".altup." in name:
                rate, decay = rate * optim.coefficient_lr_mult, 0.0
            if "norm" in name:
                decay = 0.0
            with torch.no_grad():
                parameter.copy_(value)
            groups.append({"params": [parameter], "lr": rate, "weight_decay": decay})
        betas = (optim.adam_beta1, optim.adam_beta2)
        self.optimizer = torch.optim.AdamW(groups, betas=betas, eps=optim.adam_eps)
        for name, module in self.model.named_modules():
            if name == "model.norm" or name.endswith("mlp.router"):
                module.register_forward_hook(divided_by(WIDER))
            elif name.endswith(("o_proj", "down_proj")):
                module.register_forward_hook(divided_by(DEEPER))

    def step(self, tokens: Tensor, labels: Tensor) -> float:
        """The language-model loss before an update."""
        losses = self.model.losses(tokens, labels)
        self.optimizer.zero_grad()
        losses.share(StepTotals.of([losses])).backward()
        self.optimizer.step()
        return float(losses.lm_sum / losses.num_tokens)


def divided_by(number: float):
    def hook(module: nn.Module, given: object, output: Tensor) -> Tensor:
        return output / number

    return hook


@pytest.mark.parametrize(
    "sections", [{}, {"altup": {"width": 1}, "model": {"share_embeddings_and_output_weights": True}}]
)
def test_the_trainer_follows_the_papers_form(sections: dict) -> None:
    config = small("one", optim=MUP, train={"micro_batch_size": 8, "steps": STEPS}, **sections)
    written = AsWritten(config)
    got, wanted = [], []
    with topology(config.parallel) as topo:
        stepper = Stepper(config, topo)
        scheduler = build_scheduler(stepper.engine.optimizer, config)
        for _ in range(STEPS):
            scheduler.step(1)
            got.append(train_step(stepper.engine, [stepper.batch], config, topo).lm_loss)
            wanted.append(written.step(stepper.batch.tokens, stepper.batch.labels))
    assert got == pytest.approx(wanted, rel=1e-5)
    assert got[-1] < got[0] - 0.05
    standard = replace(config.optim, parametrization="standard", mup_base_hidden_size=None, mup_base_num_layers=None)
    assert initial("model.norm.weight", (4,), ((0, 4),), replace(config, optim=standard)).tolist() == [1.0] * 4
