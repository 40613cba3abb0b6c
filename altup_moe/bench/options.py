"""What a benchmark is asked to measure. Read before torch is imported, by the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from altup_moe.altup.variants import Correct
from altup_moe.config.model_schema import ArchName, VariantName, Width


@dataclass(frozen=True)
class StepBench:
    """Training-step time and peak memory of stream widths K, interleaved."""

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
    moe_experts: int = 8
    """Experts of every layer, top-2; 0 is dense."""
    repeats: int = 9
    """Timed steps of each width, after two that are not counted."""
    threads: int = 2
    """CPU threads of torch."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class SequenceBench:
    """Training-step time of strided layers beside the plain model: every method, interleaved steps, medians, ratios."""

    arch: ArchName = "gpt"
    """Architecture (see model.arch); t5 strides in its encoder alone, as the paper does."""
    stride: int = 4
    """Tokens of a window, of which a strided layer sees one."""
    layers: str = "1..-2"
    """Layers that stride, first..last (see sequence.layers)."""
    methods: tuple[Literal["altup", "stride_and_skip", "average_pool"], ...] = (
        "altup",
        "stride_and_skip",
        "average_pool",
    )
    """What tokens between anchors become (see sequence.method)."""
    width: Width = 1
    """Blocks K of the stream, in the plain model too."""
    hidden_size: int = 256
    """Width d of a layer, in features."""
    num_layers: int = 8
    """Transformer layers; of arch t5 in either stack."""
    seq_length: int = 512
    """Tokens of a sample; of arch t5 of its encoder."""
    decoder_seq_length: int = 128
    """Tokens that arch t5's decoder writes of a sample."""
    micro_batch_size: int = 2
    """Samples of a step."""
    moe_experts: int = 0
    """Experts of every layer, top-2; 0 is dense."""
    repeats: int = 9
    """Timed steps of each model, after two that are not counted."""
    threads: int = 2
    """CPU threads of torch."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class OverlapBench:
    """What a step's exchange hides, and what AltUp adds: every mode in turn."""

    widths: tuple[Width, ...] = (1, 2, 4)
    """Stream widths K; 1 is what the others are compared with."""
    variants: tuple[VariantName, ...] = ("altup",)
    """altup.variant of the wider ones."""
    level: Literal["layer", "branch"] = "layer"
    """altup.level of them."""
    correct: tuple[Correct, ...] = ("next",)
    """altup.correct of them, and of K = 1 beside the plain one. delayed: attention runs while the experts of the layer
    before exchange tokens."""
    tensor: int = 1
    """Tensor-parallel ranks, under sequence parallelism: a window for attention's mixing too."""
    only_async: bool = False
    """Leave out blocking exchanges and halves of a micro-batch: a quarter of the modes, for many variants."""
    hidden_size: int = 256
    """Width d of a layer, in features."""
    num_layers: int = 4
    """Transformer layers, all with experts."""
    seq_length: int = 256
    """Tokens of a sample."""
    micro_batch_size: int = 4
    """Samples of a step on each rank."""
    moe_experts: int = 8
    """Experts of a layer, top-2, over all ranks."""
    repeats: int = 9
    """Timed steps of each mode, after one that is not counted."""
    recorded: int = 3
    """Further steps of each mode whose spans are recorded."""
    threads: int = 1
    """CPU threads of a rank."""
    out: str | None = None
    """Directory for a trace.json and a step.png of every mode; None writes none."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class ExpertsBench:
    """Time of a sparse feed-forward over a dense one of equal active FLOPs."""

    hidden_size: int = 512
    """Width d of a token, in features."""
    ffn_hidden_size: int = 704
    """Inner width of one expert, in features; the dense MLP's is twice that."""
    moe_experts: int = 8
    """Experts, top-2, over all ranks."""
    tokens: int = 4096
    """Tokens of a pass on each rank."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of weights and tokens."""
    repeats: int = 15
    """Timed turns, after one that is not counted."""
    threads: int = 1
    """CPU threads of a rank."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class TrainBench:
    """Tokens per second of a step (K = 1, one rank) against transformers' Mixtral."""

    hidden_size: int = 256
    """Width d of a layer, in features."""
    num_layers: int = 4
    """Transformer layers, all with experts."""
    ffn_hidden_size: int = 384
    """Inner width of one expert, in features."""
    moe_experts: int = 8
    """Experts of a layer, top-2."""
    vocab_size: int = 4096
    """Tokens of the vocabulary; the output layer is tied to the embedding."""
    seq_length: int = 256
    """Tokens of a sample."""
    micro_batch_size: int = 4
    """Samples of a step."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of weights and activations."""
    repeats: int = 15
    """Timed steps of each, after two that are not counted."""
    threads: int = 2
    """CPU threads of torch."""
    compile: bool = False
    """Measure the torch backend with train.compile too."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class WatchdogBench:
    """What notes of collectives (train.hang_timeout) cost a step: interleaved steps with and without, on all ranks."""

    hidden_size: int = 256
    """Width d of a layer, in features."""
    num_layers: int = 4
    """Transformer layers."""
    seq_length: int = 256
    """Tokens of a sample."""
    micro_batch_size: int = 4
    """Samples of a step of each rank."""
    moe_experts: int = 8
    """Experts of every layer, top-2."""
    repeats: int = 31
    """Timed pairs of steps, after two that are not counted."""
    threads: int = 1
    """CPU threads of torch."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class ScalingBench:
    """Strong and weak scaling: one model on 1, 2, 4 ... ranks, beside the planner."""

    ranks: tuple[int, ...] = (1, 2)
    """Numbers of ranks to compare, each started by the launcher in turns."""
    launcher: Literal["torchrun", "netlab"] = "torchrun"
    """netlab: each rank on a node of its own with a link of --rate (root)."""
    rate: str | None = None
    """Rate of netlab's links, as 200mbit; None does not limit them."""
    hidden_size: int = 256
    """Width d of a layer, in features."""
    num_layers: int = 4
    """Transformer layers, all with experts."""
    seq_length: int = 256
    """Tokens of a sample."""
    samples: int = 4
    """Strong scaling: samples of a step of all ranks together. Weak: of a step of each rank, over the most ranks."""
    width: Width = 2
    """Blocks K of the stream."""
    moe_experts: int = 8
    """Experts of a layer, top-2, over all ranks."""
    repeats: int = 9
    """Timed steps of each number of ranks in a round, after two that are not counted."""
    rounds: int = 2
    """Times that each number of ranks is started."""
    recorded: int = 3
    """Further steps of a round whose spans are recorded."""
    threads: int = 1
    """CPU threads of a rank."""
    cluster: str | None = None
    """Cluster for the planner's prediction: a shipped one's name or a file, as `altup-moe plan measure` writes."""
    directory: str | None = None
    """Directory of the measured points (points.jsonl), which other calls add to; None is a temporary one."""
    report: bool = False
    """Measure nothing: print what --directory holds."""
    picture: str | None = None
    """File for a picture, .png or .svg; None draws none."""
    json: bool = False
    """Print one JSON object instead of a table."""


Parametrization = Literal["standard", "mup"]


@dataclass(frozen=True)
class CoordinatesBench:
    """Coordinate check of muP: activations by width. After some steps their sizes are flat under mup alone."""

    hidden_sizes: tuple[int, ...] = (64, 128, 256, 512)
    """Widths d to compare; the first is mup's base."""
    parametrizations: tuple[Parametrization, ...] = ("standard", "mup")
    """optim.parametrization to compare."""
    width: Width = 2
    """Blocks K of the stream."""
    variant: VariantName = "altup"
    """Variant of the stream (see altup.variant), around layers where it can be, else around branches."""
    recycled: bool = True
    """Narrow tables, tied. False: tables K d wide, untied."""
    moe_experts: int = 4
    """Experts of every second layer, top-2; 0 is dense."""
    num_layers: int = 4
    """Transformer layers."""
    head_size: int = 32
    """Features of an attention head, at every width."""
    learning_rate: float = 1e-3
    """Rate of the first width; under standard of all."""
    steps: int = 4
    """Optimizer steps before the pass that is measured."""
    seeds: int = 3
    """Models of each width, each with its own batch."""
    seq_length: int = 64
    """Tokens of a sample."""
    micro_batch_size: int = 8
    """Samples of a step."""
    threads: int = 1
    """CPU threads of torch."""
    out: str | None = None
    """JSON file that the points are written to, beside those of other models in it; a study's page draws
    coordinates.json of its directory."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class MixingBench:
    """Time of the one pass over the wide stream: over a copy of the same bytes, and beside others. On a CPU."""

    widths: tuple[Width, ...] = (2, 4)
    """Blocks K of the stream."""
    exponents: tuple[int, ...] = (16, 18, 20, 21, 22)
    """Numbers of a block (tokens times width), as powers of two."""
    dtypes: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    """Types of the stream."""
    threads: tuple[int, ...] = (1, 2)
    """CPU threads of torch."""
    kernels: tuple[Literal["torch", "compile"], ...] = ("torch", "compile")
    """Implementations of ours; compile needs a C++ compiler, and seconds for each K, type and number of threads."""
    dynamic: bool = False
    """Passes with a matrix for each token, and whole steps of hyper-connections that compute it (mHC); on a GPU too."""
    rivals: bool = True
    """Measure the other implementations too."""
    hidden_size: int = 512
    """Width d of a token, which the others' routers see."""
    repeats: int = 9
    """Timed turns, after one that is not counted."""
    memory: Literal["kept", "fresh"] = "kept"
    """kept: glibc keeps what was freed; fresh: its default, large results lie on new pages every time."""
    json: bool = False
    """Print one JSON object instead of a table."""


@dataclass(frozen=True)
class CheckpointBench:
    """Saving and loading, hashes and flushing included, beside plain safetensors."""

    megabytes: int = 512
    """Size of the checkpoint: a MoE model's weights and optimizer state."""
    repeats: int = 7
    """Timed turns, after one that is not counted."""
    threads: int = 2
    """CPU threads of torch."""
    directory: str | None = None
    """Where to write (a few times the size; removed afterwards); None is the current directory."""
    json: bool = False
    """Print one JSON object instead of a table."""


FaultKind = Literal[
    "kill-rank",
    "kill-launcher",
    "kill-node",
    "stop-signal",
    "stop-rank",
    "link-down",
    "slow-rank",
    "slow-link",
    "full-disk",
]
NODE_KINDS: tuple[FaultKind, ...] = ("kill-node", "link-down", "slow-link")
"""Faults of a node or its link: they need --nodes."""
HANG_KINDS: tuple[FaultKind, ...] = ("stop-rank", "link-down")
"""Faults that nothing ends but a watchdog."""
ROOT_KINDS: tuple[FaultKind, ...] = ("slow-rank", "full-disk")
"""Faults that need root: a cgroup, a file system of their own."""


@dataclass(frozen=True)
class FaultsBench:
    """Goodput: train a tiny model on ranks, inject faults, start again, count what was lost. Exit code 1: samples were
    lost or repeated, a process outlived its launcher, or the losses are not bit for bit those of a quiet run."""

    minutes: float = 5.0
    """How long to train among faults; a quiet run of the same steps comes after."""
    every: float = 60.0
    """Seconds between faults, a quarter more or less."""
    seed: int = 1
    """Decides which fault comes when, and whom it meets."""
    ranks: int = 2
    """Ranks, 2 to 4."""
    nodes: bool = False
    """Put each rank on a node of its own, on a netlab (needs root). Without it: one node, with --max-restarts."""
    kinds: tuple[FaultKind, ...] = ()
    """Faults to inject, each as often as the others; none named is all that this machine can have."""
    save_interval: int = 10
    """Steps between checkpoints."""
    memory_interval: int | None = None
    """Steps between checkpoints in memory (checkpoint.memory_interval); None is off."""
    hang_timeout: float = 10.0
    """Seconds after which a hang is reported (train.hang_timeout)."""
    quiet: bool = True
    """Compare with a quiet run."""
    directory: str | None = None
    """New directory for both runs and the console's lines, kept; None is a temporary one."""
    json: bool = False
    """Print one JSON object instead of a table."""
