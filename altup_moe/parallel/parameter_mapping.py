"""Map the parameters of a rank to slices of global tensors.

Global names are the reference model's (`altup_moe.model.reference.gpt`): one name, one tensor, whatever the layout.
A Megatron parameter on a rank is a list of `Piece`s: fused projections (QKV, gate and up) contain several global
tensors, and tensor parallelism cuts each by rows (column-parallel linears) or columns (row-parallel ones).
Initial weights, checkpoints and parity tests all use this table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from altup_moe.altup.shape import (
    SEQUENCE_COEFFICIENTS,
    context_width,
    embedding_width,
    output_width,
)
from altup_moe.altup.variants import find_variant
from altup_moe.config import RunConfig

if TYPE_CHECKING:
    from torch import Tensor

TensorSlice = tuple[tuple[int, int], ...]
"""A (start, stop) pair for each dimension of a tensor."""


@dataclass(frozen=True)
class Piece:
    """A slice of a global tensor, and the slice of a local parameter that holds the same elements.

    ``name``, ``shape``: of the whole global tensor.
    """

    name: str
    shape: tuple[int, ...]
    global_slice: TensorSlice
    local_slice: TensorSlice

    @property
    def index(self) -> tuple[slice, ...]:
        """Index of the piece in the global tensor."""
        return tuple(slice(a, b) for a, b in self.global_slice)

    @property
    def local_index(self) -> tuple[slice, ...]:
        """Index of the piece in the local parameter."""
        return tuple(slice(a, b) for a, b in self.local_slice)


@dataclass(frozen=True)
class NamedTensor:
    """A parameter or persistent buffer of a model chunk, and the global pieces in it."""

    chunk: int
    name: str
    tensor: Tensor
    pieces: list[Piece]

    @property
    def key(self) -> str:
        """A name that is unique on this rank."""
        return f"{self.chunk}.{self.name}"


@dataclass(frozen=True)
class Shard:
    """This rank's (index, size) in each dimension of parallelism that shards parameters."""

    tensor: tuple[int, int] = (0, 1)
    expert: tuple[int, int] = (0, 1)
    expert_tensor: tuple[int, int] = (0, 1)


def _whole(name: str, *shape: int) -> list[Piece]:
    tensor_slice = tuple((0, n) for n in shape)
    return [Piece(name, shape, tensor_slice, tensor_slice)]


def _rows(name: str, rows: int, columns: int, part: tuple[int, int], offset: int = 0) -> Piece:
    """This rank's rows of a [rows, columns] tensor; in the local parameter they start at row `offset`."""
    n = rows // part[1]
    return Piece(
        name,
        (rows, columns),
        ((part[0] * n, part[0] * n + n), (0, columns)),
        ((offset, offset + n), (0, columns)),
    )


def _columns(name: str, rows: int, columns: int, part: tuple[int, int]) -> list[Piece]:
    n = columns // part[1]
    return [Piece(name, (rows, columns), ((0, rows), (part[0] * n, part[0] * n + n)), ((0, rows), (0, n)))]


def _gated_mlp(prefix: str, which: str, hidden: int, ffn: int, part: tuple[int, int]) -> list[Piece]:
    """Megatron's gated MLP: fc1 is [gate; up] of this rank's rows, fc2 its columns of down."""
    if which == "linear_fc2":
        return _columns(f"{prefix}.down_proj.weight", hidden, ffn, part)
    return [
        _rows(f"{prefix}.gate_proj.weight", ffn, hidden, part),
        _rows(f"{prefix}.up_proj.weight", ffn, hidden, part, offset=ffn // part[1]),
    ]


def _fused_qkv(prefix: str, config: RunConfig, part: tuple[int, int]) -> list[Piece]:
    """Megatron's fused QKV: for each query group of this rank, its queries' rows, then its key's, then its value's."""
    m = config.model
    per_group = m.num_attention_heads // m.num_query_groups
    channels, hidden = m.head_dim, m.hidden_size
    local_groups = m.num_query_groups // part[1]
    pieces, row = [], 0
    for group in range(part[0] * local_groups, (part[0] + 1) * local_groups):
        for letter, rows, total in (
            ("q", per_group * channels, m.num_attention_heads * channels),
            ("k", channels, m.num_query_groups * channels),
            ("v", channels, m.num_query_groups * channels),
        ):
            tensor_slice = ((group * rows, (group + 1) * rows), (0, hidden))
            local = ((row, row + rows), (0, hidden))
            pieces.append(Piece(f"{prefix}.{letter}_proj.weight", (total, hidden), tensor_slice, local))
            row += rows
    return pieces


def _stacked_experts(prefix: str, which: str, shard: Shard, config: RunConfig) -> list[Piece]:
    """All experts of a rank stacked along the rows of one parameter; each has the rows of `_gated_mlp`."""
    moe, hidden = config.moe, config.model.hidden_size
    rank, count = shard.expert[0], moe.num_experts // shard.expert[1]
    rows = hidden if which == "linear_fc2" else 2 * moe.ffn_hidden_size // shard.expert_tensor[1]
    stacked = []
    for index in range(count):
        expert = f"{prefix}.{rank * count + index}"
        for piece in _gated_mlp(expert, which, hidden, moe.ffn_hidden_size, shard.expert_tensor):
            (start, stop), columns = piece.local_slice
            stacked.append(replace(piece, local_slice=((start + index * rows, stop + index * rows), columns)))
    return stacked


def _fused_kv(prefix: str, config: RunConfig, part: tuple[int, int]) -> list[Piece]:
    """Megatron's fused KV of cross-attention: for each head of this rank, its key's rows, then its value's."""
    m, a = config.model, config.altup
    heads, channels = m.num_attention_heads // part[1], m.head_dim
    total, width = m.num_attention_heads * channels, context_width(m.hidden_size, a.width, a.variant, a.cross_attention)
    pieces = []
    for local in range(heads):
        head = part[0] * heads + local
        for row, letter in ((2 * local, "k"), (2 * local + 1, "v")):
            tensor_slice = ((head * channels, (head + 1) * channels), (0, width))
            local_slice = ((row * channels, (row + 1) * channels), (0, width))
            pieces.append(Piece(f"{prefix}.{letter}_proj.weight", (total, width), tensor_slice, local_slice))
    return pieces


_LAYER = re.compile(r"(encoder|decoder)\.layers\.(\d+)\.(?:layer\.)*(.+)")
_PROJECTION = re.compile(r"(expand|decoder\.contract)\.(\d+)\.weight")
_EXPERT = re.compile(r"mlp\.experts\.local_experts\.(\d+)\.(linear_fc[12])\.weight")
_GROUPED = re.compile(r"mlp\.experts\.(linear_fc[12])\.weight(\d+)")  # Transformer Engine's grouped linears


def pieces(local_name: str, layer_offset: int, shard: Shard, config: RunConfig) -> list[Piece]:
    """The global pieces in a Megatron parameter or buffer of our model on a rank.

    Args:
        local_name: its name inside the model chunk, e.g. ``decoder.layers.0.layer.self_attention.linear_qkv.weight``.
        layer_offset: global index of the chunk's first layer.
        shard: this rank's coordinates.
        config: the run.
    Raises:
        KeyError: no rule covers the name (a new parameter needs a rule here).
    """
    m, a = config.model, config.altup
    stacks, embedding = m.architecture.stacks, m.architecture.embedding
    if local_name == "embedding.word_embeddings.weight":
        width = embedding_width(m.hidden_size, a.width, a.recycled)
        return [_rows(embedding, m.vocab_size, width, shard.tensor)]
    if local_name == "output_layer.weight":
        width = output_width(m.hidden_size, a.width, a.variant, a.recycled)
        # On a later pipeline stage a tied output layer is a copy of the embedding.
        name = embedding if m.share_embeddings_and_output_weights else "lm_head.weight"
        return [_rows(name, m.vocab_size, width, shard.tensor)]
    if local_name == "encoder.final_layernorm.weight":
        return _whole("encoder.norm.weight", context_width(m.hidden_size, a.width, a.variant, a.cross_attention))
    if local_name in ("encoder_bias.weight", "decoder_bias.weight"):
        name = f"{local_name.partition('_')[0]}.relative_attention_bias.weight"
        return _columns(name, m.relative_attention_num_buckets, m.num_attention_heads, shard.tensor)
    if local_name == "decoder.final_layernorm.weight":
        return _whole(f"{stacks['decoder']}.norm.weight", output_width(m.hidden_size, a.width, a.variant, a.recycled))
    if local_name.startswith("decoder.collapse.coefficients."):
        leaf = local_name.rpartition(".")[2]
        return _whole(f"model.altup_head.{leaf}", *find_variant(a.variant).head[leaf].sizes(a.width, m.hidden_size))
    projection = _PROJECTION.fullmatch(local_name)
    if projection:
        end = "altup_projections" if projection[1] == "expand" else "altup_unembed_projections"
        return _whole(f"model.{end}.{projection[2]}.weight", m.hidden_size, m.hidden_size)
    match = _LAYER.fullmatch(local_name)
    if match:
        return _layer_pieces(match[3], f"{stacks[match[1]]}.layers.{int(match[2]) + layer_offset}", shard, config)
    raise KeyError(f"no global name for the parameter {local_name}")


def _layer_pieces(name: str, prefix: str, shard: Shard, config: RunConfig) -> list[Piece]:
    m, a, moe = config.model, config.altup, config.moe
    match name.split("."):
        case [*branch, "coefficients", coefficient]:
            shape = find_variant(a.variant).coefficients[coefficient].sizes(a.width, m.hidden_size)
            return _whole(".".join((prefix, "altup", *branch[1:], coefficient)), *shape)
        case ["sequence", coefficient]:
            shape = SEQUENCE_COEFFICIENTS[config.sequence.method][coefficient]
            return _whole(f"{prefix}.sequence.{coefficient}", *shape)
        case ["input_layernorm", "weight"]:
            return _whole(f"{prefix}.input_layernorm.weight", m.hidden_size)
        case ["pre_mlp_layernorm", "weight"]:
            return _whole(f"{prefix}.post_attention_layernorm.weight", m.hidden_size)
        case ["self_attention", "linear_qkv", "weight"]:
            return _fused_qkv(f"{prefix}.self_attn", config, shard.tensor)
        case [("self_attention" | "cross_attention") as which, "linear_proj", "weight"]:
            columns = m.num_attention_heads * m.head_dim
            return _columns(
                f"{prefix}.{which.partition('_')[0]}_attn.o_proj.weight", m.hidden_size, columns, shard.tensor
            )
        case ["pre_cross_attn_layernorm", "weight"]:
            return _whole(f"{prefix}.cross_attn_layernorm.weight", m.hidden_size)
        case ["cross_attention", "linear_q", "weight"]:
            rows = m.num_attention_heads * m.head_dim
            return [_rows(f"{prefix}.cross_attn.q_proj.weight", rows, m.hidden_size, shard.tensor)]
        case ["cross_attention", "linear_kv", "weight"]:
            return _fused_kv(f"{prefix}.cross_attn", config, shard.tensor)
        case ["self_attention", ("q_layernorm" | "k_layernorm") as which, "weight"]:
            return _whole(f"{prefix}.self_attn.{which[0]}_norm.weight", m.head_dim)
        case ["mlp", "router", "weight"]:
            return _whole(f"{prefix}.mlp.router.weight", moe.num_experts, m.hidden_size)
        case ["mlp", "router", ("expert_bias" | "expert_load") as buffer]:
            return _whole(f"{prefix}.mlp.router.{buffer}", moe.num_experts)
        case ["mlp", "shared_experts", which, "weight"]:
            return _gated_mlp(
                f"{prefix}.mlp.shared_expert", which, m.hidden_size, config.shared_expert_size, shard.tensor
            )
        case ["mlp", ("linear_fc1" | "linear_fc2") as which, "weight"]:
            return _gated_mlp(f"{prefix}.mlp", which, m.hidden_size, m.ffn_hidden_size, shard.tensor)
        case ["mlp", "experts", ("fc1" | "fc2") as which]:
            return _stacked_experts(f"{prefix}.mlp.experts", f"linear_{which}", shard, config)
    name = _GROUPED.sub(r"mlp.experts.local_experts.\2.\1.weight", name)
    expert = _EXPERT.fullmatch(name)
    if expert:
        index = int(expert[1]) + shard.expert[0] * (moe.num_experts // shard.expert[1])
        return _gated_mlp(
            f"{prefix}.mlp.experts.{index}", expert[2], m.hidden_size, moe.ffn_hidden_size, shard.expert_tensor
        )
    raise KeyError(f"no global name for the layer parameter {name}")
