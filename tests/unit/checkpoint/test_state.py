"""A rank's state as slices of global tensors: weights, moments and fp32 copies, whole or in ranges, and put back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.state import LocalTensor, local_tensors, optimizer_steps, set_optimizer_steps
from altup_moe.parallel.parameter_mapping import NamedTensor, Piece


class Run:
    """Two matrices, a vector and a buffer, trained by two chained AdamW, one of them with two groups."""

    def __init__(self, seed: int, chained: bool = True) -> None:
        torch.manual_seed(seed)
        self.a, self.b, self.c = (nn.Parameter(torch.randn(*size)) for size in ((3, 4), (4, 2), (2,)))
        self.bias = torch.randn(2)
        first = torch.optim.AdamW([{"params": [self.a], "lr": 0.1}, {"params": [self.c], "lr": 0.2}])
        second = torch.optim.AdamW([self.b], lr=0.05)
        parts = [SimpleNamespace(optimizer=first), SimpleNamespace(optimizer=second), SimpleNamespace(optimizer=None)]
        self.inner = [first, second]
        self.optimizer: Any = SimpleNamespace(chained_optimizers=parts) if chained else parts[0]

    def named(self) -> list[NamedTensor]:
        values = {"a": self.a, "b": self.b, "c": self.c, "bias": self.bias}
        slices = {name: tuple((0, n) for n in value.shape) for name, value in values.items()}
        return [
            NamedTensor(0, name, value, [Piece(f"global.{name}", tuple(value.shape), slices[name], slices[name])])
            for name, value in values.items()
        ]

    def held(self) -> list[LocalTensor]:
        return local_tensors(self.named(), self.optimizer)

    def train(self, steps: int) -> list[float]:
        losses = []
        generator = torch.Generator().manual_seed(optimizer_steps(self.optimizer))
        for _ in range(steps):
            x = torch.randn(5, 3, generator=generator)
            loss = ((torch.tanh(x @ self.a) @ self.b + self.c + self.bias).square()).mean()
            for optimizer in self.inner:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.inner:
                optimizer.step()
            self.bias += 0.01
            losses.append(loss.item())
        return losses


def copied(run: Run) -> dict[Any, Tensor]:
    return {each.part: each.tensor.clone() for each in run.held()}


def put_back(run: Run, state: dict[Any, Tensor], steps: int) -> None:
    held = run.held()
    assert {each.part for each in held} == set(state)
    for each in held:
        each.tensor.copy_(state[each.part])
    set_optimizer_steps(run.optimizer, steps)


@pytest.mark.parametrize("own_steps", [0, 5])
def test_training_goes_on_bit_for_bit(own_steps: int) -> None:
    """Also in a run that has steps of its own behind it."""
    run, other = Run(1), Run(2)
    run.train(3)
    state, steps = copied(run), optimizer_steps(run.optimizer)
    assert steps == 3
    expected = run.train(4)
    other.train(own_steps)
    put_back(other, state, steps)
    assert other.train(4) == expected
    for mine, theirs in zip(run.held(), other.held(), strict=True):
        assert torch.equal(mine.tensor, theirs.tensor), mine.part


def test_before_the_first_step_moments_are_zero_and_change_nothing() -> None:
    run = Run(1)
    moments = [each for each in run.held() if each.part.name.startswith("exp_avg")]
    assert len(moments) == 6
    assert not any(each.tensor.any() for each in moments)
    assert optimizer_steps(run.optimizer) == 0
    assert run.train(3) == Run(1).train(3)


def test_names_shapes_and_kinds() -> None:
    run = Run(1)
    held = {each.part.name: each for each in run.held()}
    kinds = {f"{kind}/global.{name}" for kind in ("weights", "exp_avg", "exp_avg_sq") for name in "abc"}
    assert set(held) == kinds | {"weights/global.bias"}
    assert held["weights/global.a"].spec == held["exp_avg/global.a"].spec
    assert (held["weights/global.a"].spec.shape, held["weights/global.a"].spec.dtype) == ((3, 4), "F32")


def test_weights_alone() -> None:
    assert {each.part.name.partition("/")[0] for each in local_tensors(Run(1).named(), None)} == {"weights"}


def test_an_optimizer_that_is_not_chained() -> None:
    run = Run(1, chained=False)
    assert "exp_avg/global.c" in {each.part.name for each in run.held()}


def test_half_precision_weights_have_a_main_copy() -> None:
    weight = nn.Parameter(torch.randn(3, 2).bfloat16())
    weight.main_param = weight.detach().float() + 1e-4
    optimizer = SimpleNamespace(optimizer=torch.optim.AdamW([weight.main_param]))
    tensor_slice = ((0, 3), (0, 2))
    held = local_tensors([NamedTensor(0, "w", weight, [Piece("w", (3, 2), tensor_slice, tensor_slice)])], optimizer)
    by_name = {each.part.name: each for each in held}
    assert by_name["weights/w"].spec.dtype == "BF16"
    assert by_name["main/w"].spec.dtype == "F32"
    assert by_name["main/w"].tensor.data_ptr() == weight.main_param.data_ptr()


def distributed(parameter: nn.Parameter, start: int, stop: int) -> Any:
    """What `local_tensors` reads of Megatron's distributed optimizer that has a range of one parameter."""
    updated = parameter.detach().view(-1)[start:stop]
    place = {"param_map": {parameter: {"param": SimpleNamespace(start=start, end=stop)}}}
    return SimpleNamespace(
        optimizer=torch.optim.AdamW([updated]),
        model_param_gbuf_map={parameter: (0, "f32", 0)},
        gbuf_ranges=[{"f32": [place]}],
        model_fp32_groups=[[parameter]],
        shard_fp32_groups=[[updated]],
        model_float16_groups=[[]],
        shard_fp32_from_float16_groups=[[]],
    )


@pytest.mark.parametrize(("start", "stop"), [(0, 30), (0, 1), (7, 8), (3, 29), (10, 25), (29, 30), (15, 15)])
def test_a_range_of_a_fused_parameter_is_slices_of_its_tensors(start: int, stop: int) -> None:
    """Two tensors of 5 features lie in one parameter: rows 2..5 of one (6 rows), rows 0..2 of the other (4 rows)."""
    parameter = nn.Parameter(torch.arange(30.0).view(6, 5))
    pieces = [
        Piece("gate", (6, 5), ((2, 5), (0, 5)), ((0, 3), (0, 5))),
        Piece("up", (4, 5), ((0, 3), (0, 5)), ((3, 6), (0, 5))),
    ]
    optimizer = distributed(parameter, start, stop)
    held = local_tensors([NamedTensor(0, "fc1", parameter, pieces)], optimizer)
    moments = optimizer.optimizer.state[optimizer.optimizer.param_groups[0]["params"][0]] if stop > start else {}
    whole = {"gate": torch.full((6, 5), -1.0), "up": torch.full((4, 5), -1.0)}
    if stop > start:
        moments["exp_avg"].copy_(torch.arange(float(start), float(stop)))
    for each in held:
        kind, name = each.part.name.split("/")
        if kind == "exp_avg":
            whole[name][tuple(slice(a, b) for a, b in each.part.tensor_slice)] = each.tensor
    local = torch.cat([whole["gate"][2:5], whole["up"][0:3]]).view(-1)
    expected = torch.full((30,), -1.0)
    expected[start:stop] = torch.arange(float(start), float(stop))
    assert torch.equal(local, expected)
    assert (whole["gate"][:2] == -1).all()


def test_what_is_held_is_what_a_checkpoint_needs(tmp_path: Path) -> None:
    """Every weight and moment of a real model, so that `Checkpoint` finds it complete."""
    from tests.checkpoints import head, random_tensors, write_tensors
    from tests.distributed.cases import small

    config = small("one")
    with Checkpoint(write_tensors(tmp_path, head(config, 3), random_tensors(config))) as checkpoint:
        assert checkpoint.manifest.has_optimizer
