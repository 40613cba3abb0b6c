"""With recycled embeddings the widened model is the plain one before its first step: the whole Megatron model."""

from __future__ import annotations

import pytest
import torch

from altup_moe.config import RunConfig
from altup_moe.model.build import build_model
from altup_moe.parallel.parameter_mapping import TensorSlice
from altup_moe.parallel.seeds import initial
from altup_moe.parallel.topology import Topology
from altup_moe.train.batches import Batch
from altup_moe.train.step import run_schedule
from tests.distributed.cases import micro_batch, micro_batch_count, small


def with_equal_blocks(name: str, shape: tuple[int, ...], tensor_slice: TensorSlice, config: RunConfig) -> torch.Tensor:
    """The seeded weights, but for the random part of the projections at the ends of a dynamic stream."""
    return torch.eye(*shape) if "projections" in name else initial(name, shape, tensor_slice, config)


def first_loss(topo: Topology, width: int, epsilon: float, **altup: object) -> float:
    """Mean loss in nats per token of the first step's micro-batches under the seeded weights."""
    config = small("one", altup={"width": width, **altup}, model={"layernorm_epsilon": epsilon})
    chunks = build_model(config, topo, with_equal_blocks)
    batches = [Batch(*micro_batch(config, n), torch.ones(2, 16)) for n in range(micro_batch_count(config))]
    with torch.no_grad():
        loss, tokens = run_schedule(chunks, batches, config, topo, forward_only=True).tolist()
    assert tokens == 8 * 16
    return loss / tokens


@pytest.mark.parametrize("select", ["alternating", "same"])
@pytest.mark.parametrize("variant", ["altup", "gemma", "hc", "dynamic"])
@pytest.mark.parametrize("width", [2, 4])
def test_recycled_model_starts_as_the_plain_one(alone: Topology, width: int, variant: str, select: str) -> None:
    plain = first_loss(alone, 1, 1e-10)
    assert first_loss(alone, width, 1e-10, variant=variant, select=select) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize(
    "variant",
    ["altup", "gemma", "hc", "dynamic", "wide_residual", "mhc", "mhc_single_pass", "independent_hc"],
)
def test_around_branches_too(alone: Topology, variant: str) -> None:
    plain = first_loss(alone, 1, 1e-10)
    assert first_loss(alone, 4, 1e-10, variant=variant, level="branch") == pytest.approx(plain, rel=1e-6)


def test_wide_tables_do_not(alone: Topology) -> None:
    """The equality above is not for lack of sensitivity."""
    assert abs(first_loss(alone, 2, 1e-10, recycled=False) / first_loss(alone, 1, 1e-10) - 1) > 1e-3


@pytest.mark.parametrize("select", ["alternating", "same"])
def test_the_mean_of_a_dynamic_stream_has_no_factor(alone: Topology, select: str) -> None:
    """Where the sum of the others needs a small epsilon, as below."""
    plain = first_loss(alone, 1, 1e-5)
    assert first_loss(alone, 4, 1e-5, variant="dynamic", select=select) == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("width", [2, 4])
def test_only_epsilon_keeps_them_apart(alone: Topology, width: int) -> None:
    """The final norm sees the plain model's sum K times: at a visible epsilon the factor does not quite cancel."""
    difference = first_loss(alone, width, 1e-5) / first_loss(alone, 1, 1e-5) - 1
    assert 1e-6 < abs(difference) < 1e-4
