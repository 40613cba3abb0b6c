"""Initial weights that depend on the seed and the global name alone: bit for bit equal under every layout.

A tensor is drawn in blocks of rows. Each block has its own generator, seeded by (seed, global name, block number). A
rank draws only the blocks that intersect its slices, so the cost falls with tensor and expert parallelism.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from altup_moe.altup.lazy import load_object
from altup_moe.altup.sequence import initial_coefficients
from altup_moe.altup.shape import step_of
from altup_moe.altup.static import initial_value
from altup_moe.altup.variants import selected_block
from altup_moe.config import RunConfig
from altup_moe.parallel.parameter_mapping import TensorSlice
from altup_moe.parallel.parametrization import coefficient_of, factors, kind_of

BLOCK_ELEMENTS = 1 << 18
"""Elements of a block: large compared with the cost of a generator, small enough that a rank can skip most blocks."""


def derived_seed(seed: int, *what: object) -> int:
    """A 63-bit seed from a run's seed and a name, the same in every process and on every machine."""
    text = ":".join(map(str, (seed, *what)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def normal(name: str, shape: tuple[int, ...], tensor_slice: TensorSlice, std: float, seed: int) -> Tensor:
    """A slice of the global tensor `name` with N(0, std^2) values, fp32 on the CPU."""
    rows, row_elements = shape[0], math.prod(shape[1:])
    step = max(1, BLOCK_ELEMENTS // max(1, row_elements))
    first, last = tensor_slice[0]
    drawn = []
    for start in range(first // step * step, last, step):
        generator = torch.Generator().manual_seed(derived_seed(seed, name, start // step))
        block = torch.randn(min(step, rows - start), *shape[1:], generator=generator)
        drawn.append(block[max(0, first - start) : last - start])
    columns = tuple(slice(a, b) for a, b in tensor_slice[1:])
    return torch.cat(drawn)[(slice(None), *columns)] * std


def t5_std(leaf: str, fan_in: int, hidden_size: int, head_dim: int) -> float:
    """T5's standard deviation of a matrix's initial weights (transformers 5.23, `T5PreTrainedModel._init_weights`).

    1 / sqrt(fan in), so that outputs have the inputs' size; queries a further sqrt(head_dim) less, for scores are not
    scaled. Embeddings are of unit variance, and relative biases are drawn as if they were read from the stream.
    An untied output layer is drawn as any matrix (as in T5X), not with transformers' unit variance, which would start
    at a loss of hundreds of nats.
    """
    if leaf == "shared":
        return 1.0
    if leaf == "relative_attention_bias":
        return hidden_size**-0.5
    return (fan_in * (head_dim if leaf == "q_proj" else 1)) ** -0.5


def initial(name: str, shape: tuple[int, ...], tensor_slice: TensorSlice, config: RunConfig) -> Tensor:
    """A slice of the initial value of a global parameter or buffer.

    Matrices are normal with model.init_method_std, those that write into the residual stream (o_proj, down_proj)
    divided by sqrt(2 num_layers), or as the architecture's row says; norms are 1, the routers' balancing bias 0, AltUp
    coefficients as their variant says. Projections at the ends of a dynamic stream are the identity and such a matrix:
    nearly equal blocks, so that the model is nearly the plain one, but no two that stay equal. With
    optim.parametrization mup what is drawn, and the last norm, is scaled (`parallel.parametrization`).
    """
    index = tuple(slice(a, b) for a, b in tensor_slice)
    leaf = name.split(".")[-2] if name.endswith(".weight") else name.split(".")[-1]
    scale = factors(kind_of(name, config), config).initial
    std = config.model.init_method_std * scale
    if name.startswith(("model.altup_projections.", "model.altup_unembed_projections.")):
        return torch.eye(*shape)[index] + normal(name, shape, tensor_slice, std, config.train.seed)
    coefficient = coefficient_of(name, config)
    if coefficient is not None:
        start = coefficient.initial
        if start == "normal":
            return normal(name, shape, tensor_slice, std, config.train.seed)
        if name.startswith("model.altup_head."):
            return initial_value(start, shape, 0)[index]
        _, _, layer, _, *branch, _ = name.split(".")
        step = step_of(int(layer), branch[0] if branch else "", config.altup.level)
        block = selected_block(step, config.altup.width, config.altup.select)
        return initial_value(start, shape, block)[index]
    if ".sequence." in name:
        return initial_coefficients(config.sequence.method)[leaf][index]
    if leaf == "expert_bias":
        return torch.zeros(shape)[index]
    if leaf == "expert_load":
        return torch.full(shape, 1 / config.moe.num_experts)[index]
    if leaf.endswith("norm"):
        return torch.full(shape, scale)[index]
    m = config.model
    if m.architecture.initial_std is not None:
        std = load_object(m.architecture.initial_std)(leaf, shape[1], m.hidden_size, m.head_dim)
        return normal(name, shape, tensor_slice, std, config.train.seed)
    if leaf in ("o_proj", "down_proj"):
        std /= math.sqrt(2 * m.num_layers)
    return normal(name, shape, tensor_slice, std, config.train.seed)
