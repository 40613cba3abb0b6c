"""The table of architectures. A row says what differs between them, and everything else asks the row.

Texts of the form "module:name" are imported where they are used, so that reading the table imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """A row of the table.

    Args:
        name: its `model.arch`.
        stacks: Megatron's name of each stack of layers -> its prefix in global parameter names, in order.
        embedding: global name of the embedding table.
        megatron: function (RunConfig, Topology, first, last, vp_stage) -> this rank's model chunk.
        reference: class of the reference model.
        refused: function (RunConfig) -> what the architecture does not have (`config.arch_checks`).
        objectives: values of data.objective that fit; the first is the default.
        activation: activation of the gated MLPs, by transformers' name.
        attention_scale: factor of attention scores; None is 1 / sqrt(features of a head).
        initial_std: function (leaf, fan in, hidden size, features of a head) -> standard deviation of a matrix's
            initial weights. None: model.init_method_std, less for projections into the residual stream.
        shared_bias: whether all layers of a stack add a bias of one learned table to their attention scores.
        planned: whether the planner has arithmetic for it.
        grown: whether its checkpoints can grow.
    """

    name: str
    stacks: Mapping[str, str]
    embedding: str
    megatron: str
    reference: str
    refused: str
    objectives: tuple[str, ...]
    activation: str
    attention_scale: float | None = None
    initial_std: str | None = None
    shared_bias: bool = False
    planned: bool = True
    grown: bool = True

    @property
    def encoder_decoder(self) -> bool:
        """Whether an encoder reads the inputs, and a decoder with cross-attention writes the targets."""
        return "encoder" in self.stacks


ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        Architecture(
            "gpt",
            stacks={"decoder": "model"},
            embedding="model.embed_tokens.weight",
            megatron="altup_moe.model.gpt:gpt_chunk",
            reference="altup_moe.model.reference.gpt:AltUpMoEForCausalLM",
            refused="altup_moe.config.arch_checks:refused_by_gpt",
            objectives=("causal", "prefix", "span_corruption"),
            activation="silu",
        ),
        Architecture(
            "t5",
            stacks={"encoder": "encoder", "decoder": "decoder"},
            embedding="shared.weight",
            megatron="altup_moe.model.t5:t5_chunk",
            reference="altup_moe.model.reference.t5:AltUpMoEForConditionalGeneration",
            refused="altup_moe.config.arch_checks:refused_by_t5",
            objectives=("span_corruption", "prefix"),
            activation="gelu_new",
            attention_scale=1.0,
            initial_std="altup_moe.parallel.seeds:t5_std",
            shared_bias=True,
            planned=False,
            grown=False,
        ),
    )
}
"""Every architecture by its name in `model.arch`."""


def objective_names() -> tuple[str, ...]:
    """Every objective that an architecture has."""
    return tuple(dict.fromkeys(name for row in ARCHITECTURES.values() for name in row.objectives))
