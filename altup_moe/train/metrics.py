"""What one step is recorded as."""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class StepMetrics:
    """One line of metrics.jsonl. Losses in nats per token; rates over all ranks; memory of rank 0.

    MoE fields are None without experts, `valid_` fields None on steps without a validation; None is not written.
    """

    step: int
    loss: float
    lm_loss: float
    aux_loss: float | None
    z_loss: float | None
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    tflops_per_second: float
    step_seconds: float
    memory_gib: float
    consumed_samples: int
    expert_load_imbalance: float | None
    dropped_share: float | None
    skipped_steps: int
    valid_loss: float | None = None
    valid_perplexity: float | None = None
    valid_bits_per_byte: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Fields that have a value, in order."""
        return {key: value for key, value in asdict(self).items() if value is not None}

    def line(self, steps: int) -> str:
        """The console's line, in the field's habit."""
        parts = [f"step {self.step}/{steps}", f"loss {self.loss:.4f}", f"lm {self.lm_loss:.4f}"]
        if self.aux_loss is not None:
            parts += [f"aux {self.aux_loss:.4f}", f"z {self.z_loss:.4f}"]
        parts += [
            f"grad norm {self.grad_norm:.3f}",
            f"lr {self.learning_rate:.2e}",
            f"{self.tokens_per_second:,.0f} tok/s",
            f"{self.tflops_per_second:.3f} TFLOP/s",
            f"mem {self.memory_gib:.2f} GiB",
        ]
        if self.expert_load_imbalance is not None:
            parts += [
                f"expert max/mean {self.expert_load_imbalance:.2f}",
                f"dropped {100 * (self.dropped_share or 0.0):.1f}%",
            ]
        parts.append(f"skipped {self.skipped_steps}")
        if self.valid_loss is not None:
            parts.append(f"valid loss {self.valid_loss:.4f} | bits/byte {self.valid_bits_per_byte:.4f}")
        return " | ".join(parts)


def peak_memory_gib() -> float:
    """Largest memory so far: of this process on a CPU, of torch's allocator on a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # ru_maxrss is in KiB on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
