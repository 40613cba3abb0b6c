"""A rank's state collected and restored: training goes on bit for bit, and what does not fit is named."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from altup_moe.checkpoint.state import collect, restore
from altup_moe.checkpoint.store import RankState
from altup_moe.config import ConfigError
from altup_moe.parallel.names import NamedTensor, Piece


class Scheduler:
    """Counts steps, as Megatron's does."""

    def __init__(self) -> None:
        self.num_steps = 0

    def step(self, increment: int) -> None:
        self.num_steps += increment


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
        self.scheduler = Scheduler()

    def named(self) -> list[NamedTensor]:
        values = {"a": self.a, "b": self.b, "c": self.c, "bias": self.bias}
        boxes = {name: tuple((0, n) for n in value.shape) for name, value in values.items()}
        return [
            NamedTensor(0, name, value, [Piece(f"global.{name}", tuple(value.shape), boxes[name], boxes[name])])
            for name, value in values.items()
        ]

    def train(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            x = torch.randn(5, 3)  # also what is random goes on
            loss = ((torch.tanh(x @ self.a) @ self.b + self.c + self.bias).square()).mean()
            for optimizer in self.inner:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.inner:
                optimizer.step()
            self.scheduler.step(1)
            self.bias += 0.01
            losses.append(loss.item())
        return losses


def collected(run: Run) -> RankState:
    """As a file would hold it: what the run does afterwards does not reach it."""
    return copy.deepcopy(collect(run.named(), run.optimizer, run.scheduler))


def test_training_goes_on_bit_for_bit() -> None:
    run = Run(1)
    run.train(3)
    state = collected(run)
    expected = run.train(4)
    other = Run(2)
    restore(state, other.named(), other.optimizer, other.scheduler)
    assert other.scheduler.num_steps == 3
    assert other.train(4) == expected
    for mine, theirs in zip(run.named(), other.named(), strict=True):
        assert torch.equal(mine.tensor, theirs.tensor), mine.name
    assert other.scheduler.num_steps == 7


def test_restoring_replaces_what_was_there() -> None:
    """Also into an optimizer that has steps of its own behind it."""
    run, other = Run(1), Run(2)
    run.train(3)
    state = collected(run)
    expected = run.train(2)
    other.train(5)
    restore(state, other.named(), other.optimizer, other.scheduler)
    assert other.train(2) == expected
    assert other.scheduler.num_steps == 5


def test_before_the_first_step_there_are_no_moments() -> None:
    state = collected(Run(1))
    assert not [key for key in state.tensors if key.endswith("exp_avg")]
    other = Run(2)
    restore(state, other.named(), other.optimizer, other.scheduler)
    torch.manual_seed(9)
    expected = Run(1)
    torch.manual_seed(9)
    losses = other.train(3)
    torch.manual_seed(9)
    assert expected.train(3) == losses


def test_every_tensor_has_a_name_of_its_own() -> None:
    run = Run(1)
    run.train(1)
    state = collected(run)
    assert {key for key in state.tensors if key.startswith("model/")} == {
        "model/0.a",
        "model/0.b",
        "model/0.c",
        "model/0.bias",
    }
    moments = {"main", "exp_avg", "exp_avg_sq", "step"}
    places = {"0/0/0", "0/1/0", "1/0/0"}
    assert {key for key in state.tensors if key.startswith("optimizer/")} == {
        f"optimizer/{place}/{name}" for place in places for name in moments
    }
    assert "rng/cpu" in state.tensors
    assert state.meta["pieces"]["model/0.a"] == [
        {"name": "global.a", "shape": (3, 4), "box": ((0, 3), (0, 4)), "local": ((0, 3), (0, 4))}
    ]


def test_an_optimizer_that_is_not_chained() -> None:
    run = Run(1, chained=False)
    run.train(1)
    assert "optimizer/0/1/0/exp_avg" in collected(run).tensors


@pytest.mark.parametrize("key", ["model/0.b", "model/0.bias", "optimizer/1/0/0/main"])
def test_a_tensor_of_another_model_is_named(key: str) -> None:
    run = Run(1)
    run.train(1)
    for damage in ("no such tensor", r"shape \(9,\)"):
        tensors = dict(collected(run).tensors)
        if damage == "no such tensor":
            del tensors[key]
        else:
            tensors[key] = torch.zeros(9)
        other = Run(2)
        with pytest.raises(ConfigError, match=f"{damage} for {key}") as error:
            restore(RankState(tensors, collected(run).meta), other.named(), other.optimizer, other.scheduler)
        assert error.value.key == "checkpoint.resume"
