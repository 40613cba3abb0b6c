"""Records of steps for the tests of where they go."""

from __future__ import annotations

from typing import Any

from altup_moe.train.metrics import StepMetrics

DENSE: dict[str, Any] = {
    "loss": 2.5, "lm_loss": 2.25, "aux_loss": None, "z_loss": None, "grad_norm": 1.5, "learning_rate": 1e-3,
    "tokens_per_second": 12345.6, "tflops_per_second": 0.125, "step_seconds": 0.5, "memory_gib": 1.75,
    "expert_load_imbalance": None, "dropped_share": None, "skipped_steps": 0,
}  # fmt: skip
MOE: dict[str, Any] = {"aux_loss": 0.04, "z_loss": 0.003, "expert_load_imbalance": 2.5, "dropped_share": 0.125}
VALID: dict[str, Any] = {"valid_loss": 3.25, "valid_perplexity": 25.79, "valid_bits_per_byte": 1.375}


def record(step: int, **fields: Any) -> StepMetrics:
    """A dense step's record; keyword arguments replace fields."""
    return StepMetrics(**{"step": step, "consumed_samples": 8 * step, **DENSE, **fields})
