"""The configuration of a run: frozen dataclasses with Megatron's names, one for each section of `config.yaml`.

``altup-moe train --help`` prints the docstring of every field, with its unit. `checks.py` checks that values fit each
other; `load.py` reads a `RunConfig` from files and command lines.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from altup_moe.config.architectures import objective_names
from altup_moe.config.model_schema import AltUpConfig, ModelConfig, MoEConfig, SequenceConfig

ZeroStage = Literal[1, 2, 3]
if TYPE_CHECKING:
    ObjectiveName = str
else:
    ObjectiveName = Literal[objective_names()]


@dataclass(frozen=True)
class ParallelConfig:
    """The layout: how many ranks share what. Data parallel size is what remains of the world size."""

    tensor: int = 1
    """Tensor-parallel ranks (sequence parallelism goes with it)."""
    pipeline: int = 1
    """Pipeline stages."""
    virtual_pipeline: int = 1
    """Model chunks a pipeline rank holds (interleaved 1F1B); 1 is plain 1F1B."""
    first_stage_layers: int | None = None
    """Layers on the first pipeline rank (uneven split); None splits evenly."""
    last_stage_layers: int | None = None
    """Layers on the last pipeline rank (uneven split); None splits evenly."""
    expert: int = 1
    """Expert-parallel ranks; must divide moe.num_experts."""
    expert_tensor: int = 1
    """Tensor-parallel ranks inside one expert."""
    context: int = 1
    """Context-parallel ranks (the sequence is split among them)."""
    data: int | None = None
    """Data-parallel ranks, checked if given; None is world size / (tensor * pipeline * context)."""
    distributed_optimizer: bool = False
    """Shard optimizer state over data-parallel ranks (ZeRO-1)."""
    overlap_grad_reduce: bool = False
    """Reduce gradients while the backward pass runs."""
    zero_stage: ZeroStage = 1
    """What train.engine deepspeed shards over data-parallel ranks: 1 optimizer state, 2 gradients too, 3 weights too
    (dense models)."""


@dataclass(frozen=True)
class OverlapConfig:
    """What runs while tokens travel to experts and back. Nothing here changes what is computed."""

    mixing: Literal["deferred", "inline"] = "deferred"
    """deferred: a layer mixes the stream while its communication is in flight, and only one axpy waits for its output.
    inline: all of it waits."""
    exchange: Literal["async", "blocking"] = "async"
    """async: the experts' all-to-all is started, other work is done, then it is waited for. blocking: at once."""
    microbatch_halves: bool = False
    """Cut every micro-batch in two along the batch; one half computes while the other's all-to-all is in flight."""


@dataclass(frozen=True)
class DataConfig:
    """What is trained on."""

    corpus: str = "python-docs"
    """python-docs, wikipedia-sample, or the path prefix of a dataset written by altup-moe prepare-data."""
    tokenizer: str | None = None
    """Directory of a Hugging Face tokenizer, or t5 (the real one, downloaded at first use). None: the one beside
    prepared data; for a named corpus, a byte-level BPE of model.vocab_size tokens trained on it."""
    add_special_tokens: bool = False
    """Put before every document, prompt and task's input what the tokenizer itself puts before a text (its BOS), as
    transformers does. altup-moe convert sets it. False: nothing stands before a text."""
    valid_fraction: float = 0.05
    """Share of the tokens held out for validation: whole documents, or where these are too few or too long, the end of
    the corpus."""
    shuffle: Literal["epoch", "run"] | None = None
    """Order of training samples. epoch: every epoch reads every window once, in an order of its own, whatever the
    number of steps. run: windows of all epochs of the run are shuffled together, as older versions did. None is epoch
    for a new run, and for one that goes on the order of its checkpoint."""
    objective: ObjectiveName | None = None
    """What is made of a window of text. causal: every next token. prefix: those after a random point. span_corruption:
    dropped spans (T5, arXiv 1910.10683). None is causal for arch gpt and span_corruption for t5."""
    noise_density: float = 0.15
    """span_corruption: share of a window's tokens that is dropped."""
    mean_noise_span: float = 3.0
    """span_corruption: mean tokens of a dropped span."""
    sentinels: int = 100
    """Sentinel tokens of a BPE trained for t5 or span_corruption (<extra_id_0>, ..., counted down from the last id)."""
    mixture: tuple[str, ...] = ()
    """Corpora and tasks to draw samples from, each NAME or NAME=WEIGHT; without a weight its number of samples counts.
    Empty is data.corpus alone. The tokenizer is data.tokenizer, or the one of data.corpus."""
    mixture_cap: int | None = None
    """Number of samples beyond which a component of the mixture without a weight weighs no more; None is no limit."""
    task_files: tuple[str, ...] = ()
    """Local data of tasks, each TASK=DIRECTORY that holds train and validation as .jsonl, .json or .parquet, with the
    columns of the hub's data set. Other tasks come from the hub, or by name."""
    cache: str | None = None
    """Directory for tokenised named corpora; None keeps them in the run directory."""


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: Literal["adamw", "adafactor"] = "adamw"
    """adafactor: T5's (arXiv 1804.04235), with rates in proportion to the size of each tensor; needs tensors whole on a
    rank. T5 had no weight_decay."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    min_learning_rate: float = 1e-4
    """Learning rate at the end of the decay."""
    warmup_steps: int = 20
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "wsd", "constant", "inverse_sqrt"] = "cosine"
    """Decay after the warm-up; wsd holds the peak, then decays over decay_steps. inverse_sqrt: the peak times
    sqrt(warmup_steps / step), as T5 was trained (but for its warm-up, which was constant)."""
    decay_steps: int | None = None
    """cosine: steps until min_learning_rate (None: train.steps). wsd: steps of the final decay (None: a tenth of
    train.steps). null with constant and inverse_sqrt, which have no end."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; norms and AltUp coefficients have none."""
    adam_beta1: float = 0.9
    """Decay of the first moment."""
    adam_beta2: float = 0.95
    """Decay of the second moment."""
    adam_eps: float = 1e-8
    """Adam's epsilon."""
    clip_grad: float = 1.0
    """Largest global L2 norm of the gradient; 0 does not clip."""
    coefficient_lr_mult: float = 1.0
    """Learning rate of the AltUp coefficients, as a multiple of learning_rate."""
    parametrization: Literal["standard", "mup"] = "standard"
    """mup: initial weights, rates and weight decay follow from the size, so that the rate that is best for a small
    model is best for a wider one (muP, arXiv 2203.03466). learning_rate is then that of the model of
    mup_base_hidden_size. Needs optimizer adamw and arch gpt."""
    mup_base_hidden_size: int | None = None
    """model.hidden_size of the model whose rate was tuned; with it mup changes nothing. null without mup."""
    mup_base_num_layers: int | None = None
    """model.num_layers of that model: rates then hold for deeper models too (CompleteP, arXiv 2505.01618). None:
    layers' outputs start smaller by the root of their number, as without mup, and rates do not depend on it."""


@dataclass(frozen=True)
class TrainConfig:
    """The run itself."""

    engine: Literal["megatron", "deepspeed"] = "megatron"
    """Who reduces gradients and updates weights. deepspeed (ZeRO, parallel.zero_stage) needs its package and no
    pipeline. One model and one checkpoint format, whichever."""
    steps: int = 200
    """Optimizer steps. A larger number lengthens a run, a finished one too; a schedule that ends with the run (cosine,
    wsd) is stretched."""
    micro_batch_size: int = 4
    """Samples of one forward pass on one data-parallel rank."""
    global_batch_size: int = 8
    """Samples of one optimizer step over all ranks; a multiple of micro_batch_size * data-parallel size."""
    seed: int = 1234
    """One seed is one model and one order of samples, under every layout."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Dtype of parameters and activations; optimizer state and coefficients stay fp32."""
    transformer_engine: Literal["auto", "on", "off"] = "auto"
    """Transformer Engine's RMSNorm and, with moe.backend megatron, its grouped GEMM for the experts. auto: on GPUs,
    where it is installed. One model and one checkpoint format, whichever."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations recomputed in the backward pass: none, attention's scores (selective; flash kernels keep none, so it
    saves memory only with attention dropout on a CPU), or whole layers."""
    loss_chunk: int | None = None
    """Positions of a sequence whose logits are in memory at a time, and are computed again in the backward pass; for
    large vocabularies. null: all at once."""
    compile: bool = False
    """Compile what stands between matrix products (torch.compile): RMSNorm, rotary embedding, activations of experts,
    cross-entropy. Fewer passes over memory; needs a C++ compiler, and some seconds before the first step."""
    eval_interval: int = 100
    """Steps between validations; 0 validates only at the end."""
    eval_samples: int = 64
    """Validation samples of one validation, at most; the run says at its start if there are fewer."""
    eval_tasks: tuple[str, ...] = ()
    """Tasks whose validation splits the model answers at every validation (train.eval_interval), as
    altup-moe evaluate --tasks does; metrics eval/TASK/METRIC. Rank 0 answers and holds the whole model for it."""
    eval_task_limit: int | None = 64
    """Examples of each of train.eval_tasks that are answered, the first ones; null answers all."""
    stop_after: int | None = None
    """Stop (saving) after this step while the schedule still runs to train.steps; None runs through."""
    max_skipped: int | None = 10
    """Steps skipped in a row, for a loss or gradient that is no finite number or for a spike, that end the run with
    exit code 76; null never does. A checkpoint from before the first of them is kept."""
    spike_sigma: float | None = None
    """A step whose loss or gradient norm lies more than this many standard deviations above the mean of
    train.spike_window steps is a spike (OLMo-core uses 6); null looks for none."""
    spike_window: int = 128
    """Steps that a spike is measured against; until half of them, and 20, are there no step is one."""
    on_spike: Literal["skip", "stop", "rollback"] = "skip"
    """What a spike does. skip: its update is left out. stop: the run ends with exit code 76. rollback: the run goes
    back to the newest checkpoint that a good step followed, and passes over the samples from there to the spike."""
    hang_timeout: float | None = 120.0
    """Seconds, beyond the longest step so far, in which some rank must move on. Then a report names the rank and
    operation that all wait for (RUN_DIR/watchdog), and all ranks end with exit code 77. 0 or null is off."""


@dataclass(frozen=True)
class CheckpointConfig:
    """Saving and resuming."""

    save_interval: int = 100
    """Steps between checkpoints; 0 saves only at the end and on SIGTERM."""
    keep: int = 2
    """Newest checkpoints kept; beside them, while the run lasts, the newest one that a good step followed."""
    keep_every: int | None = None
    """Checkpoints whose step is a multiple of this are kept too; None keeps only the newest."""
    save_at: tuple[int, ...] = ()
    """Steps after which a checkpoint is saved, beside those of save_interval, and kept: to branch other runs off."""
    memory_interval: int | None = None
    """Steps between checkpoints in the memory of each node and of a neighbour (/dev/shm, or ALTUP_MOE_MEMORY_DIR): a
    restart after a crash goes on from the newest one without the disk. Two stay. null is off."""
    asynchronous: bool = True
    """Take a copy (whose memory is kept for the next) and train on while it is written. false waits for the disk."""
    on_failure: Literal["continue", "stop"] = "continue"
    """When a checkpoint cannot be saved (a full disk): say so and train on, or end the run. The last good one stays."""
    resume: bool = True
    """Go on from the newest checkpoint of the run directory, if there is one, under this or any other layout."""
    fallback: bool = False
    """When the newest checkpoint is damaged, go on from the newest older one that is not."""
    initial_load_path: str | None = None
    """Checkpoint, or directory of a run, whose weights a new run starts from; counters and optimizer start afresh."""
    branch_from: str | None = None
    """Checkpoint of another run that a new run goes on from, exactly as that run would have: weights, optimizer,
    counters and random streams. What a resumed run may change may differ, as the schedule."""


@dataclass(frozen=True)
class LogConfig:
    """What is written where."""

    run_dir: str = "runs/default"
    """Everything the run writes lies here."""
    interval: int = 1
    """Steps between console lines (metrics.jsonl has every step)."""
    routing_interval: int | None = None
    """Steps that a line of routing.jsonl sums: routes by layer and expert, which trackers and altup-moe show draw. None
    is a hundredth of train.steps; 0 is off."""
    profile_steps: int = 0
    """Steps to record, after two that are not, into RUN_DIR/profile: trace.json (Perfetto, Chrome) and step.png; 0 is
    off. --profile alone records 3."""
    straggler_interval: int = 20
    """Steps after which the ranks' own times of a step (without waiting for others) and the links between nodes are
    compared; 0 is off."""
    straggler_threshold: float = 1.5
    """A rank whose own time is so many times its peers' median, in two intervals in a row, is named as slow."""
    slow_link_threshold: float = 2.0
    """A link between nodes that is so many times slower than their median, in two measurements in a row, is named."""
    tensorboard: bool = True
    """Write TensorBoard files into the run directory."""
    wandb_project: str | None = None
    """Weights & Biases project (needs the wandb package); None is off."""
    mlflow_experiment: str | None = None
    """MLflow experiment (needs the mlflow package); None is off."""
    sample_interval: int | None = None
    """Steps between texts that the model as it is then adds to log.sample_prompts, as altup-moe generate does: to the
    console, samples.jsonl, TensorBoard and trackers. Rank 0 generates and holds the whole model for it; null is off."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts of log.sample_interval."""
    sample_prompts_file: str | None = None
    """Text file with more prompts, one in each line that is not blank."""
    sample_tokens: int = 32
    """Tokens that are added to a prompt, at most."""
    sample_temperature: float = 0.8
    """Divides the logits of log.sample_interval's texts, 1e-6 to 1e30; 0 takes the likeliest token."""


@dataclass(frozen=True)
class RunConfig:
    """Train a Transformer with an AltUp stream and sparse experts."""

    model: ModelConfig = field(default_factory=ModelConfig)
    altup: AltUpConfig = field(default_factory=AltUpConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig, kw_only=True)
    moe: MoEConfig = field(default_factory=MoEConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    overlap: OverlapConfig = field(default_factory=OverlapConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    @property
    def shared_expert_size(self) -> int:
        """Inner width of what every token passes beside the experts of an MoE layer; 0 is nothing."""
        return self.model.ffn_hidden_size if self.moe.partial else self.moe.shared_expert_size

    def to_dict(self) -> dict[str, dict[str, object]]:
        """Plain nested dict in file order (what `config.yaml` holds)."""
        return {
            section: {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
            for section, values in dataclasses.asdict(self).items()
        }
