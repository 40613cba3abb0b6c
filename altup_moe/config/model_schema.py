"""The sections that say what the model is: `model`, `altup`, `sequence` and `moe` (see `config.schema`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from altup_moe.altup.variants import VARIANTS
from altup_moe.config.architectures import ARCHITECTURES, Architecture

Width = Literal[1, 2, 4, 8]
BACKEND_NAMES = ["megatron", "deepspeed", "tutel", "torch"]
"""Names of backends (of `altup_moe.moe.backends.BACKENDS`, which this layer cannot import)."""
if TYPE_CHECKING:
    VariantName = str
    ArchName = str
    BackendName = str
else:
    # The tables say which names there are; `config.load.renew_names` is called when a program adds one.
    VariantName = Literal[tuple(VARIANTS)]
    ArchName = Literal[tuple(ARCHITECTURES)]
    BackendName = Literal[tuple(BACKEND_NAMES)]


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the Transformer. Decoder-only (RMSNorm, RoPE, gated SiLU MLP, grouped-query attention, no biases), or
    with arch t5 an encoder-decoder."""

    num_layers: int = 8
    """Transformer layers; of t5's encoder."""
    hidden_size: int = 256
    """Width d of a layer, in features; the residual stream is altup.width times wider."""
    ffn_hidden_size: int = 704
    """Inner width of the gated MLP of dense layers, in features."""
    num_attention_heads: int = 8
    """Query heads; must divide hidden_size unless kv_channels is given."""
    num_query_groups: int = 4
    """Key/value heads (grouped-query attention); must divide num_attention_heads."""
    seq_length: int = 256
    """Tokens of a training sample (context length)."""
    vocab_size: int = 4096
    """Rows of the embedding table, in tokens; at least the tokenizer's vocabulary."""
    share_embeddings_and_output_weights: bool = True
    """Tie the output layer to the embedding table; t5 then divides its features by the root of their number."""
    rotary_base: int = 10000
    """RoPE base (theta)."""
    layernorm_epsilon: float = 1e-5
    """Epsilon of every RMSNorm."""
    init_method_std: float = 0.02
    """Standard deviation of initial weights; output projections use it divided by sqrt(2 num_layers). arch t5 has T5's
    own scheme and does not read it."""
    attention_dropout: float = 0.0
    """Dropout probability on attention weights."""
    hidden_dropout: float = 0.0
    """Dropout probability on the residual branches' outputs."""
    kv_channels: int | None = None
    """Features of one attention head, an even number; None is hidden_size / num_attention_heads."""
    qk_layernorm: bool = False
    """RMSNorm over the features of every query and key head, before RoPE (as in Qwen3)."""
    rotary_scaling_factor: float | None = None
    """Llama 3.1's stretching of RoPE: wavelengths above 8192 tokens become this many times longer, those below 2048
    stay, those between are interpolated; None leaves all as they are."""
    arch: ArchName = "gpt"
    """gpt, or t5: T5 v1.1's encoder-decoder (relative position biases, unscaled attention, gated GELU, T5's initial
    weights, full key/value heads)."""
    num_decoder_layers: int | None = None
    """Layers of t5's decoder; None is num_layers. null with arch gpt."""
    decoder_seq_length: int | None = None
    """Tokens of t5's decoder (its encoder has seq_length); None is a quarter of seq_length. null with arch gpt."""
    relative_attention_num_buckets: int = 32
    """Buckets of t5's relative distances, an even number."""
    relative_attention_max_distance: int = 128
    """Tokens from which on all of t5's distances fall into one bucket."""
    max_positions: int | None = None
    """Longest sequence in tokens that the model was made for, where that is more than seq_length: generation goes so
    far, and exports say it. altup-moe convert sets it. None is seq_length. null with arch t5, which has no limit."""

    @property
    def architecture(self) -> Architecture:
        """The row of `arch`. Raises KeyError if there is none."""
        return ARCHITECTURES[self.arch]

    @property
    def encoder_decoder(self) -> bool:
        """Whether an encoder reads the inputs, and a decoder writes the targets."""
        return self.architecture.encoder_decoder

    @property
    def head_dim(self) -> int:
        """Features of one attention head."""
        return self.kv_channels or self.hidden_size // self.num_attention_heads

    @property
    def decoder_layers(self) -> int:
        """Layers of t5's decoder."""
        return self.num_layers if self.num_decoder_layers is None else self.num_decoder_layers

    @property
    def decoder_length(self) -> int:
        """Tokens of t5's decoder."""
        return -(-self.seq_length // 4) if self.decoder_seq_length is None else self.decoder_seq_length

    @property
    def positions(self) -> int:
        """Longest sequence in tokens that the model was made for."""
        return self.seq_length if self.max_positions is None else self.max_positions

    @property
    def total_layers(self) -> int:
        """Layers of the model, of all its stacks."""
        return self.num_layers + (self.decoder_layers if self.encoder_decoder else 0)

    @property
    def tokens_per_sample(self) -> int:
        """Tokens of a sample that the model computes on."""
        return self.seq_length + (self.decoder_length if self.encoder_decoder else 0)

    @property
    def activation(self) -> str:
        """Activation of the gated MLPs, by transformers' name."""
        return self.architecture.activation


@dataclass(frozen=True)
class AltUpConfig:
    """The widened residual stream (AltUp, arXiv 2301.13310)."""

    width: Width = 2
    """Blocks K of the residual stream; 1 is the plain Transformer."""
    variant: VariantName = "altup"
    """Which (read, mix, write): altup (paper), gemma (computes on the predicted block), round_robin, hc (static
    hyper-connections), dynamic (Gemma-3n's: computed for every token, mixed inline), wide_residual (NVIDIA's;
    wide_residual_kept with its learned retention), and with level branch mhc (DeepSeek-V4's manifold-constrained
    hyper-connections), mhc_single_pass (V4.1's), independent_hc (Hunyuan V4's), gated_residual (Qwen4-exp's); sum
    (control)."""
    select: Literal["alternating", "same"] = "alternating"
    """Block that layer l computes on: l mod K, or always block 0. Variants whose steps are all alike have no such
    choice."""
    recycled: bool = True
    """True: a d wide embedding copied K times, blocks summed at the end (dynamic: learned projections at both ends; the
    newer ones collapse the blocks by learned weights, mhc_single_pass by its last branch's).
    False: tables K d wide, both ends."""
    kernel: Literal["auto", "torch", "compile", "triton"] = "auto"
    """Code of the mixing pass: plain torch, fused by torch.compile (needs a C++ compiler), or Triton (GPUs). auto takes
    triton on a GPU and torch elsewhere."""
    cross_attention: Literal["narrow", "wide"] = "narrow"
    """What t5's decoder reads of the encoder: the blocks' sum (d features), or all K d (as the paper counts)."""
    coef_clip: float | None = None
    """variant dynamic: largest magnitude of a weight that makes coefficients (Gemma-3n: 120); None does not clip."""
    level: Literal["layer", "branch"] = "layer"
    """What reads and writes the stream. layer: whole Transformer layers, as in the paper. branch: attention and
    feed-forward each, as in hyper-connections; they alternate over blocks one by one. arch gpt only."""
    correct: Literal["next", "delayed"] = "next"
    """Which layer (or branch) is the first to read what one has written: the next one, or the one after it. delayed
    lets attention run while tokens travel to the experts of the layer before (overlap.exchange async): another model,
    arch gpt. Of width 1 nothing of an output is in the next read."""


@dataclass(frozen=True)
class SequenceConfig:
    """Layers that run on every s-th token (Sequence-AltUp). AltUp, arXiv 2301.13310, section 4.2."""

    stride: int = 1
    """Tokens of a window, of which a layer sees one; 1 is off. Must divide a rank's share of model.seq_length (and of
    model.decoder_seq_length with decoder_layers)."""
    layers: str = "1..-2"
    """Layers that stride, first..last: from 0, both included, negative ones from the end; with model.arch t5 of the
    encoder. The default is the paper's choice, all but the first and the last."""
    method: Literal["altup", "stride_and_skip", "average_pool"] = "altup"
    """What tokens between become: predicted and corrected by their window's first one (altup, the paper's), left as
    they are (stride_and_skip), or what the layer makes of their window's average (average_pool)."""
    decoder_layers: str | None = None
    """Layers of t5's decoder that stride too, first..last; None leaves the decoder alone, as the paper does."""


@dataclass(frozen=True)
class MoEConfig:
    """Sparse Mixture-of-Experts feed-forwards (Megatron's MoELayer)."""

    num_experts: int = 0
    """Experts of an MoE layer; 0 makes every layer dense."""
    layer_freq: int = 1
    """Every n-th layer is MoE (layers n-1, 2n-1, ...); 1 makes all of them MoE."""
    top_k: int = 2
    """Experts a token is routed to."""
    ffn_hidden_size: int = 352
    """Inner width of one expert's gated MLP, in features."""
    capacity_factor: float | None = None
    """Tokens an expert takes of one micro-batch, as a multiple of tokens * top_k / num_experts; None is dropless.
    Padding is no token: it takes no place and counts nowhere."""
    score_function: Literal["softmax", "sigmoid"] = "softmax"
    """Router scores; softmax is taken over the chosen top_k, sigmoid is normalised over them. With top_k 1, where both
    would always be 1, the weight is the score itself: the softmax over all experts, or the sigmoid."""
    aux_loss_coeff: float = 0.01
    """Weight of the load-balancing loss (Switch, arXiv 2101.03961 eq. 4): 1 when balanced, summed over the MoE layers;
    0 turns it off. Hugging Face's router_aux_loss_coef weighs a loss that is top_k when balanced, whatever the layers,
    so altup-moe convert multiplies by top_k / MoE layers on the way in, and divides by it on the way out."""
    load_balancing_type: Literal["aux_loss", "global_aux_loss"] = "aux_loss"
    """Whose loads the load-balancing loss sees: aux_loss a micro-batch's, so that it depends on train.micro_batch_size;
    global_aux_loss those of all tokens of the optimizer step before (arXiv 2501.11873)."""
    z_loss_coeff: float = 0.0
    """Weight of the router z-loss (ST-MoE, arXiv 2202.08906 eq. 5); 0 turns it off."""
    expert_bias_update_rate: float = 0.0
    """Step of the auxiliary-loss-free balancing bias (arXiv 2408.15664); 0 is off; needs score_function sigmoid."""
    shared_expert_size: int = 0
    """Inner width of the shared expert that every token passes, in features; 0 is none."""
    dispatcher: Literal["alltoall", "allgather"] = "alltoall"
    """Collective that carries tokens to experts; the backends deepspeed and tutel always take alltoall."""
    backend: BackendName = "megatron"
    """Code that computes the experts. torch is ours; deepspeed and tutel need their packages. One model, whichever."""
    partial: bool = False
    """Experts stand beside each MoE layer's dense MLP of model.ffn_hidden_size, which becomes the shared expert (the
    AltUp paper's partial experts: small ones, top_k 1); excludes shared_expert_size."""
    alarm_expert_share: float | None = None
    """Share of a layer's tokens that one expert may take; a line and a metric say who takes more for alarm_steps steps
    in a row. top_k / num_experts is balanced, 1 is every token; null says nothing."""
    alarm_dropped_share: float | None = None
    """Share of a layer's routes that may find their expert full (capacity_factor), likewise; null says nothing."""
    alarm_steps: int = 10
    """Steps in a row that a share lies above its bound before it is said."""

    @property
    def balances_steps(self) -> bool:
        """Whether there is a balance loss that sees the loads of whole optimizer steps."""
        return self.aux_loss_coeff > 0 and self.load_balancing_type == "global_aux_loss"
