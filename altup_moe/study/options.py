"""What a benchmark is asked to measure. Read before torch is imported, by the command line."""

from __future__ import annotations

from dataclasses import dataclass

from altup_moe.config.schema import Width


@dataclass(frozen=True)
class StepBench:
    """Training-step time and peak memory of stream widths K: interleaved steps, medians, ratios to the first width."""

    widths: tuple[Width, ...] = (1, 2, 4)
    """Widths K to compare; the first is the base of the ratios."""
    hidden_size: int = 512
    """Width d of a layer, in features."""
    num_layers: int = 8
    """Transformer layers."""
    seq_length: int = 256
    """Tokens of a sample."""
    micro_batch_size: int = 4
    """Samples of a step."""
    moe_experts: int = 0
    """Experts of every layer; 0 is dense."""
    repeats: int = 9
    """Timed steps of each width, after two that are not counted."""
    threads: int = 2
    """CPU threads of torch."""
    json: bool = False
    """Print one JSON object instead of a table."""
