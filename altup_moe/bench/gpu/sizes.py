"""How large everything is: on a GPU, and in a rehearsal on a CPU. And the runs that are stepped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, OverlapConfig, RunConfig, TrainConfig
from altup_moe.config.model_schema import Width


@dataclass(frozen=True)
class Shape:
    """A model that is stepped, all layers with experts, top-2. ``samples``: of a step, in one micro-batch."""

    hidden: int
    layers: int
    seq: int
    samples: int
    experts: int
    vocab: int = 8192

    @property
    def name(self) -> str:
        """For tables."""
        return f"hidden {self.hidden}"


@dataclass(frozen=True)
class ExpertShape:
    """Experts of one rank: their number, widths in features, and rows that each of them gets."""

    hidden: int
    ffn: int
    experts: int
    rows: int

    @property
    def name(self) -> str:
        """For tables."""
        return f"{self.experts} experts {self.hidden} x {self.ffn}, {self.rows} rows each"


@dataclass(frozen=True)
class Sizes:
    """Sizes of all checks. ``environment``: of a check's process. ``device``: what torch calls it."""

    device: Literal["cuda", "cpu"]
    widths: tuple[Width, ...]
    """Widths K whose kernels are checked."""
    block_numbers: tuple[int, ...]
    """Numbers N of a block, for the passes with one matrix."""
    block_shapes: tuple[tuple[int, int], ...]
    """(tokens, features) of a block, for the passes with a matrix for each token."""
    kernel_workers: int
    """Processes that share the kernels' cases, at most: each compiles its own."""
    mixing_shape: tuple[int, int]
    """(tokens, features) of a block whose mixing is timed."""
    launched: tuple[tuple[int, int], ...]
    """(tokens, features) of blocks whose mixing is launched one by one and from a graph."""
    repeats: int
    """Timed turns."""
    losses: Shape
    loss_steps: int
    steps: tuple[Shape, ...]
    train: Shape
    expert_layer: ExpertShape
    memory: Shape
    small: Shape
    """Of runs that are compared, not timed."""
    large_expert: ExpertShape
    """Mixtral 8x7B's experts, one on each rank: the planner's efficiency was fitted to runs like it."""
    small_expert: ExpertShape
    """GPT-OSS 120B's, as the published run has them on a rank."""
    expert_curve: tuple[ExpertShape, ...]
    product: int
    """Rows and columns of a large matrix product."""
    copied: int
    """Bytes of a large copy."""
    environment: Mapping[str, str] = field(default_factory=dict)
    patience: float = 1.0
    """How many times its budget a check may take."""


_FFNS, _ROWS = (256, 512, 1024, 2048, 4096), (64, 256, 1024, 4096)

FULL = Sizes(
    device="cuda",
    widths=(1, 2, 4, 8),
    block_numbers=(1, 1000, 4099, 1 << 17),
    block_shapes=((9, 67), (37, 1024), (130, 515)),
    kernel_workers=12,
    mixing_shape=(8192, 4096),
    # All positions of a rank alone, and those of one of eight tensor ranks with sequence parallelism.
    launched=((8192, 4096), (1024, 4096)),
    repeats=15,
    losses=Shape(256, 4, 128, 4, 8, 4096),
    loss_steps=20,
    steps=(Shape(2048, 4, 4096, 2, 8), Shape(4096, 2, 4096, 2, 4)),
    train=Shape(1024, 8, 2048, 4, 8, 32768),
    expert_layer=ExpertShape(4096, 5632, 8, 4096),
    memory=Shape(2048, 4, 4096, 2, 8, 32768),
    small=Shape(256, 4, 256, 4, 8, 4096),
    large_expert=ExpertShape(4096, 14336, 1, 8192),
    small_expert=ExpertShape(2880, 2880, 16, 4096),
    expert_curve=tuple(ExpertShape(2048, ffn, 16, rows) for ffn in _FFNS for rows in _ROWS),
    product=8192,
    copied=1 << 32,
)

_TINY = Shape(64, 2, 32, 4, 4, 128)
REHEARSAL = Sizes(
    device="cpu",
    widths=(1, 2),
    block_numbers=(1, 131),
    block_shapes=((9, 67),),
    kernel_workers=2,
    mixing_shape=(8, 64),
    launched=((8, 64),),
    repeats=2,
    losses=Shape(32, 2, 16, 2, 4, 128),
    loss_steps=3,
    steps=(_TINY,),
    train=_TINY,
    expert_layer=ExpertShape(32, 64, 4, 16),
    memory=_TINY,
    small=_TINY,
    large_expert=ExpertShape(64, 128, 1, 64),
    small_expert=ExpertShape(32, 32, 4, 16),
    expert_curve=(ExpertShape(32, 64, 4, 8),),
    product=256,
    copied=1 << 20,
    environment={"TRITON_INTERPRET": "1"},
    patience=3.0,  # a laptop's cores are busy with other things
)
SIZES = {"full": FULL, "rehearsal": REHEARSAL}
"""By name."""


def run_of(shape: Shape, width: Width = 1, precision: Literal["fp32", "bf16"] = "bf16") -> RunConfig:
    """A run with a recycled stream, and experts of which two compute as much as a dense MLP."""
    heads = max(1, shape.hidden // 128) if shape.hidden >= 256 else 2
    ffn = max(64, shape.hidden * 8 // 3 // 64 * 64)
    model = ModelConfig(
        num_layers=shape.layers,
        hidden_size=shape.hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        num_query_groups=heads,
        seq_length=shape.seq,
        vocab_size=shape.vocab,
    )
    train = TrainConfig(
        micro_batch_size=shape.samples, global_batch_size=shape.samples, precision=precision, hang_timeout=None
    )
    moe = MoEConfig(num_experts=shape.experts, ffn_hidden_size=ffn // 2)
    return RunConfig(model, AltUpConfig(width=width), moe, train=train)


def step_runs(shape: Shape) -> dict[str, RunConfig]:
    """K = 1, and the wider streams with mixing inline and deferred."""
    runs = {"K = 1": run_of(shape)}
    for width in (2, 4):
        for mixing in ("inline", "deferred"):
            runs[f"K = {width}, {mixing}"] = replace(run_of(shape, width), overlap=OverlapConfig(mixing=mixing))
    return runs


def memory_runs(shape: Shape) -> dict[str, RunConfig]:
    """Runs whose peak memory is compared with the planner's."""
    plain, wide = run_of(shape), run_of(shape, 4)
    chunked = replace(plain.train, loss_chunk=max(1, shape.seq // 8))
    return {
        "K = 1, bf16": plain,
        "K = 1, bf16, loss in chunks": replace(plain, train=chunked),
        "K = 4, bf16": wide,
        "K = 4, bf16, recompute full": replace(wide, train=replace(wide.train, recompute="full")),
        "K = 2, fp32": run_of(shape, 2, "fp32"),
    }
