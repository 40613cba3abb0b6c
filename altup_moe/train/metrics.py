"""What one step is recorded as, and the floating-point operations that a token costs."""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from altup_moe.altup.shape import context_width, has_projections, output_width, stream_width
from altup_moe.config import RunConfig
from altup_moe.config.sequence import strided_layers


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


def flops_per_token(config: RunConfig) -> float:
    """Floating-point operations of forward and backward for one token, active experts only.

    Two per multiply-add, backward twice the forward (Kaplan et al., arXiv 2001.08361, section 2.1); attention counts
    the causal half of the scores; mixing the stream counts K (K + 1) multiply-adds a feature and layer, and what
    computes the coefficients of `dynamic`. A layer of stride s has S / s tokens, each with S / s to attend to; what it
    adds to the others is not counted. An encoder-decoder's operations are the mean over the tokens of both stacks.
    """
    m, a = config.model, config.altup
    q, kv = m.num_attention_heads * m.head_dim, m.num_query_groups * m.head_dim
    output = output_width(m.hidden_size, a.width, a.variant, a.recycled) * m.vocab_size
    projections = m.hidden_size * (2 * q + 2 * kv)
    if m.arch == "gpt":
        ends = 2 * (a.width - 1) * m.hidden_size**2 if has_projections(a.width, a.variant) else 0
        return 6.0 * (_layers(config, m.num_layers, projections, m.seq_length * q) + ends + output)
    read = context_width(m.hidden_size, a.width, a.variant, a.cross_attention)
    encoder = _layers(config, m.num_layers, projections, 2 * m.seq_length * q)
    # Keys and values of the encoder's output are computed on the encoder's tokens, in every layer of the decoder.
    encoder += m.decoder_layers * read * 2 * kv
    crossed = m.hidden_size * 2 * q + 2 * m.seq_length * q
    decoder = _layers(config, m.decoder_layers, projections, m.decoder_length * q + crossed)
    return 6.0 * (m.seq_length * encoder + m.decoder_length * (decoder + output)) / m.tokens_per_sample


def _layers(config: RunConfig, layers: int, projections: float, scores: float) -> float:
    """Multiply-adds of a stack's layers for one token, given those of a layer's projections and attention scores."""
    m, a, moe = config.model, config.altup, config.moe
    width = stream_width(a.width, a.variant)
    mixing = width * (width + 1) * m.hidden_size if width > 1 else 0
    if has_projections(a.width, a.variant):
        # The router looks at two blocks, and its K numbers make K^2 + K coefficients.
        mixing += 2 * width * m.hidden_size + width**3 + width**2
    dense_mlp = 3 * m.hidden_size * m.ffn_hidden_size
    moe_mlp = m.hidden_size * (3 * moe.top_k * moe.ffn_hidden_size + 3 * config.shared_expert_size + moe.num_experts)
    strided, total = strided_layers(config.sequence, m.num_layers), float(layers * mixing)
    for layer in range(layers):
        stride = config.sequence.stride if layer in strided else 1
        mlp = moe_mlp if moe.num_experts and (layer + 1) % moe.layer_freq == 0 else dense_mlp
        total += (projections + mlp) / stride + scores / stride**2
    return total


def attention_flops(config: RunConfig) -> float:
    """Operations of the forward pass of one sample in attention scores and the values weighed by them, causal half."""
    m, s = config.model, config.sequence
    strided = len(strided_layers(s, m.num_layers))
    return 2.0 * m.num_attention_heads * m.head_dim * m.seq_length**2 * (m.num_layers - strided + strided / s.stride**2)


def peak_memory_gib() -> float:
    """Largest memory so far: of this process on a CPU, of torch's allocator on a GPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    # ru_maxrss is in KiB on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
