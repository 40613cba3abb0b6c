"""Adafactor: transformers' numbers on every shape, and fused parameters updated as the tensors they hold."""

from __future__ import annotations

import pytest
import torch
from transformers.optimization import Adafactor as Theirs

from altup_moe.checkpoint import optimizer_state_shapes
from altup_moe.parallel.parameter_mapping import NamedTensor, Piece
from altup_moe.train.adafactor import Adafactor, direction

SHAPES = [(6, 9), (5,), (4, 4), (1, 7), (8, 3)]
STEPS, RATE, DECAY = 8, 0.3, 0.1


@pytest.fixture(autouse=True)
def _factor_small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_state_shapes, "FACTORED_MIN_SIZE", 1)


def piece(name: str, shape: tuple[int, ...], rows: tuple[int, int] | None = None, at: int = 0) -> Piece:
    """A tensor's rows (None: all of them), in its parameter from row `at`."""
    first, last = rows or (0, shape[0])
    rest = tuple((0, n) for n in shape[1:])
    return Piece(name, shape, ((first, last), *rest), ((at, at + last - first), *rest))


def named(parameters: dict[str, torch.Tensor]) -> list[NamedTensor]:
    return [NamedTensor(0, n, p, [piece(n, tuple(p.shape))]) for n, p in parameters.items()]


def gradients(step: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(step)
    # Some are large, some all but nothing.
    return {str(n): torch.randn(shape, dtype=torch.float64) * 10.0 ** (n - 2) for n, shape in enumerate(SHAPES)}


def start() -> dict[str, torch.Tensor]:
    return {name: value / 2 for name, value in gradients(99).items()}


def groups(parameters: list[torch.Tensor]) -> list[dict]:
    return [{"params": parameters, "lr": RATE, "weight_decay": 0.0}]


def test_the_numbers_are_those_of_transformers() -> None:
    ours, theirs = start(), start()
    mine = Adafactor(groups(list(ours.values())), named(ours))
    other = Theirs(list(theirs.values()), lr=RATE, relative_step=False, scale_parameter=True)
    for step in range(STEPS):
        for values in (ours, theirs):
            for name, gradient in gradients(step).items():
                values[name].grad = gradient
        mine.step()
        other.step()
        for name, value in ours.items():
            torch.testing.assert_close(value, theirs[name], rtol=1e-12, atol=1e-14)
    assert mine.param_groups[0]["step"] == STEPS
    assert {kind for tensor in mine.tensors.values() for kind in tensor.moments} == {
        "exp_avg_sq",
        "exp_avg_sq_row",
        "exp_avg_sq_col",
    }


def test_a_fused_parameter_is_updated_as_the_tensors_in_it() -> None:
    """Rows of a and b take turns, as those of query groups do."""
    shape = (4, 3)
    whole = {"a": torch.randn(shape), "b": torch.randn(shape) * 100}
    order = [("a", (0, 2), 0), ("b", (0, 2), 2), ("a", (2, 4), 4), ("b", (2, 4), 6)]

    def fused(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([values[name][slice(*rows)] for name, rows, _ in order])

    together = fused(whole)
    one = Adafactor(
        groups([together]), [NamedTensor(0, "ab", together, [piece(n, shape, r, at) for n, r, at in order])]
    )
    two = Adafactor(groups(list(whole.values())), named(whole))
    for step in range(STEPS):
        torch.manual_seed(step)
        for value in whole.values():
            value.grad = torch.randn(shape) * (step + 1)
        together.grad = fused({name: value.grad for name, value in whole.items() if value.grad is not None})
        one.step()
        two.step()
    assert torch.equal(together, fused(whole))
    assert set(one.tensors) == {"a", "b"}


def test_rates_are_the_groups_and_decay_is_decoupled() -> None:
    value = torch.full((3,), 2.0)
    optimizer = Adafactor([{"params": [value], "lr": RATE, "weight_decay": DECAY}], named({"x": value}))
    value.grad = torch.ones(3)
    optimizer.param_groups[0]["lr"] = 0.05
    optimizer.step()
    # The first update is the sign of the gradient, times the rate and the tensor's size after the decay.
    assert value.tolist() == pytest.approx([2.0 - 0.05 * DECAY * 2.0 - 0.05 * 2.0] * 3)


def test_small_matrices_are_not_factored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_state_shapes, "FACTORED_MIN_SIZE", 128)
    shapes = optimizer_state_shapes.state_shapes
    assert shapes("adafactor", (128, 256)) == {
        "exp_avg_sq_row": (128,),
        "exp_avg_sq_col": (256,),
    }
    assert shapes("adafactor", (127, 256)) == {"exp_avg_sq": (127, 256)}
    assert shapes("adamw", (4,)) == {"exp_avg": (4,), "exp_avg_sq": (4,)}


@pytest.mark.parametrize("large", [1e3, 1e12, 1e18])
def test_rows_without_gradients_stay_beside_very_large_ones(large: float) -> None:
    """Rows are compared by quotients, which underflow: what has no gradient is not moved, and nothing is no number."""
    moments = {"exp_avg_sq_row": torch.zeros(2), "exp_avg_sq_col": torch.zeros(3)}
    gradient = torch.tensor([[0.0, 0.0, 0.0], [large, -large, large]])
    for step in (1, 2, 3):
        update = direction(gradient, moments, step)
        assert update.isfinite().all()
        assert update[0].abs().max() == 0
        assert all(moment.isfinite().all() for moment in moments.values())
