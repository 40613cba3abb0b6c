"""What a step is recorded as."""

from __future__ import annotations

from altup_moe.train.metrics import peak_memory_gib
from tests.unit.train.records import MOE, VALID, record


def test_only_values_are_recorded_in_order() -> None:
    assert "valid_loss" not in record(1).to_dict()
    assert "aux_loss" not in record(1).to_dict()
    full = record(3, **MOE, **VALID).to_dict()
    assert list(full)[:4] == ["step", "loss", "lm_loss", "aux_loss"]
    assert full["step"] == 3
    assert full["consumed_samples"] == 24
    # A value of zero is one.
    assert record(1, dropped_share=0.0).to_dict()["dropped_share"] == 0.0


def test_the_line_of_a_dense_step() -> None:
    assert record(5).line(200) == (
        "step 5/200 | loss 2.5000 | lm 2.2500 | grad norm 1.500 | lr 1.00e-03 | 12,346 tok/s | 0.125 TFLOP/s | "
        "mem 1.75 GiB | skipped 0"
    )


def test_the_line_with_experts_and_validation() -> None:
    line = record(5, **MOE, **VALID, skipped_steps=2).line(200)
    assert "| aux 0.0400 | z 0.0030 |" in line
    assert "| expert max/mean 2.50 | dropped 12.5% | skipped 2 |" in line
    assert line.endswith("valid loss 3.2500 | bits/byte 1.3750")


def test_a_step_without_a_finite_gradient_still_has_a_line() -> None:
    assert "grad norm nan" in record(1, grad_norm=float("nan")).line(2)


def test_memory_is_that_of_this_process() -> None:
    """In GiB: torch alone takes a tenth of one, and a unit wrong by 1024 would fall outside."""
    assert 0.05 < peak_memory_gib() < 50
