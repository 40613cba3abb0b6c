"""Check that the values of a configuration fit each other and the world size, before any process group exists.

Every check is a pure function of (config, world size) that raises `ConfigError` with the dotted key, the value and
what would fit. `check_config` runs them in order; each may rely on the ones before it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import get_args

from altup_moe.altup.variants import VARIANTS
from altup_moe.config.arch_checks import check_arch
from altup_moe.config.data_checks import check_data
from altup_moe.config.errors import ConfigError
from altup_moe.config.model_schema import Width
from altup_moe.config.packages import check_installed
from altup_moe.config.ranges import RANGES
from altup_moe.config.sampling import check_generation
from altup_moe.config.schedule_checks import (
    check_checkpoints,
    check_hang_timeout,
    check_parametrization,
    check_schedule,
)
from altup_moe.config.schema import ParallelConfig, RunConfig
from altup_moe.config.sequence import strided_decoder_layers, strided_layers
from altup_moe.config.start_advice import start_with
from altup_moe.config.zero_checks import check_zero


def check_config(config: RunConfig, world_size: int) -> None:
    """Raise ConfigError for the first value that does not fit; return silently if the run can start.

    Args:
        config: values of the right types (`load_config`).
        world_size: number of processes that will run it.
    """
    for check in CHECKS:
        check(config, world_size)


def world_size_from_env() -> int:
    """Number of processes the launcher started, from WORLD_SIZE (torchrun, deepspeed, SLURM scripts); 1 alone."""
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdecimal() or int(given) < 1:
        raise ConfigError("WORLD_SIZE", given, "the environment variable must be a whole number of at least 1")
    return int(given)


def data_parallel_size(config: RunConfig, world_size: int) -> int:
    """Data-parallel ranks: what tensor, pipeline and context parallelism leave of the world."""
    return world_size // _model_ranks(config)


def smallest_world(parallel: ParallelConfig) -> int:
    """The fewest ranks a layout can run on (with parallel.data, if given, as many as it says or a multiple)."""
    p = parallel
    return math.lcm(p.tensor * p.pipeline * p.context * (p.data or 1), p.expert_tensor * p.expert * p.pipeline)


def num_microbatches(config: RunConfig, world_size: int) -> int:
    """Forward passes of one data-parallel rank in one optimizer step."""
    return config.train.global_batch_size // _samples_at_once(config, world_size)


def stage_layers(layers: int, stages: int, first: int | None = None, last: int | None = None) -> list[int] | None:
    """Layers on each pipeline rank: `first` and `last` where given, the rest shared out evenly; None if impossible."""
    given = [n for n in (first, last) if n is not None]
    middle, rest = stages - len(given), layers - sum(given)
    if middle < 0 or (middle == 0) != (rest == 0) or rest < 0 or (middle and rest % middle):
        return None
    share = [rest // middle] * middle if middle else []
    return [*([first] if first is not None else []), *share, *([last] if last is not None else [])]


def divisors(n: int) -> list[int]:
    """Divisors of n >= 1, ascending."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _fitting(values: Iterable[int]) -> str:
    known = list(values)
    if not known:
        return "no value fits beside the others"
    return f"{', '.join(map(str, known))} would fit"


def _multiples(value: int, of: int) -> str:
    """The multiples of `of` around `value`."""
    below = value // of * of
    return " or ".join(str(n) for n in (below, below + of) if n > 0) + " would fit"


def _model_ranks(config: RunConfig) -> int:
    return config.parallel.tensor * config.parallel.pipeline * config.parallel.context


def _samples_at_once(config: RunConfig, world_size: int) -> int:
    return config.train.micro_batch_size * data_parallel_size(config, world_size)


def _ranges(config: RunConfig, world_size: int) -> None:
    for key, allowed in RANGES.items():
        section, _, name = key.partition(".")
        value = getattr(getattr(config, section), name)
        for one in value if isinstance(value, tuple) else () if value is None else (value,):
            allowed.check(key, one)


def _arch(config: RunConfig, world_size: int) -> None:
    check_arch(config)


def _heads(config: RunConfig, world_size: int) -> None:
    m = config.model
    # RoPE rotates pairs of features, so a head has an even number of them.
    if m.kv_channels is not None and m.kv_channels % 2:
        raise ConfigError("model.kv_channels", m.kv_channels, f"must be even; {_multiples(m.kv_channels, 2)}")
    heads = [d for d in divisors(m.hidden_size) if m.hidden_size // d % 2 == 0]
    if m.kv_channels is None and m.num_attention_heads not in heads:
        fits = f"must divide model.hidden_size ({m.hidden_size}) into heads of an even width; {_fitting(heads)}"
        raise ConfigError("model.num_attention_heads", m.num_attention_heads, fits)
    if m.num_attention_heads % m.num_query_groups:
        fits = f"must divide model.num_attention_heads ({m.num_attention_heads}); "
        raise ConfigError(
            "model.num_query_groups", m.num_query_groups, fits + _fitting(divisors(m.num_attention_heads))
        )


def _positions(config: RunConfig, world_size: int) -> None:
    m = config.model
    if m.positions < m.seq_length:
        fits = f"model.seq_length ({m.seq_length}) or more would fit, or null"
        raise ConfigError("model.max_positions", m.max_positions, fits)


def _altup(config: RunConfig, world_size: int) -> None:
    a = config.altup
    if a.width not in get_args(Width):
        raise ConfigError("altup.width", a.width, _fitting(get_args(Width)))
    row = VARIANTS[a.variant]
    if row.projections and not a.recycled:
        fits = f"altup.variant={row.name} expands a narrow embedding by learned projections; true would fit"
        raise ConfigError("altup.recycled", False, fits)
    if a.coef_clip is not None and not row.clips:
        clipped = ", ".join(other.name for other in VARIANTS.values() if other.clips)
        raise ConfigError("altup.coef_clip", a.coef_clip, f"needs altup.variant {clipped}; null would fit")
    if a.select != "alternating" and not row.selects:
        fits = f"no step of altup.variant={row.name} has a block of its own; alternating would fit"
        raise ConfigError("altup.select", a.select, fits)
    if not row.blocks and a.recycled:
        fits = f"the control altup.variant={row.name} has wide tables; false would fit"
        raise ConfigError("altup.recycled", True, fits)
    if not row.blocks and a.width > 1 and config.model.share_embeddings_and_output_weights:
        fits = f"altup.variant={row.name} embeds {a.width} times wider than it puts out, so they cannot be tied; "
        fits += "false would fit"
        raise ConfigError("model.share_embeddings_and_output_weights", True, fits)


def _experts(config: RunConfig, world_size: int) -> None:
    moe, p = config.moe, config.parallel
    if moe.num_experts == 0:
        if moe.partial:
            fits = "moe.num_experts is 0, so there is nothing beside the dense MLPs; false would fit"
            raise ConfigError("moe.partial", True, fits)
        for key, size in (("parallel.expert", p.expert), ("parallel.expert_tensor", p.expert_tensor)):
            if size > 1:
                raise ConfigError(key, size, "moe.num_experts is 0, so there is nothing to split; 1 would fit")
        return
    check_installed("moe.backend", moe.backend)
    if moe.partial and moe.shared_expert_size:
        fits = "moe.partial makes the dense MLP of model.ffn_hidden_size the shared expert; 0 would fit"
        raise ConfigError("moe.shared_expert_size", moe.shared_expert_size, fits)
    if moe.top_k > moe.num_experts:
        raise ConfigError("moe.top_k", moe.top_k, f"at most moe.num_experts ({moe.num_experts}) would fit")
    if moe.layer_freq > config.model.num_layers:
        fits = f"no layer would have experts; at most model.num_layers ({config.model.num_layers}) would fit"
        raise ConfigError("moe.layer_freq", moe.layer_freq, fits)
    if moe.expert_bias_update_rate > 0 and moe.score_function != "sigmoid":
        fits = "needs moe.score_function sigmoid; 0 would fit"
        raise ConfigError("moe.expert_bias_update_rate", moe.expert_bias_update_rate, fits)
    if moe.num_experts % p.expert:
        fits = f"must divide moe.num_experts ({moe.num_experts}); {_fitting(divisors(moe.num_experts))}"
        raise ConfigError("parallel.expert", p.expert, fits)
    if moe.ffn_hidden_size % p.expert_tensor:
        fits = f"must divide moe.ffn_hidden_size ({moe.ffn_hidden_size}); {_fitting(divisors(moe.ffn_hidden_size))}"
        raise ConfigError("parallel.expert_tensor", p.expert_tensor, fits)


def _tensor(config: RunConfig, world_size: int) -> None:
    m, moe, tensor = config.model, config.moe, config.parallel.tensor
    split = {
        "model.num_attention_heads": m.num_attention_heads,
        "model.num_query_groups": m.num_query_groups,
        "model.vocab_size": m.vocab_size,
        "model.seq_length": m.seq_length,  # sequence parallelism
    }
    if m.encoder_decoder:
        split["model.decoder_seq_length"] = m.decoder_length
    if moe.num_experts == 0 or moe.layer_freq > 1 or moe.partial:  # there are dense MLPs
        split["model.ffn_hidden_size"] = m.ffn_hidden_size
    if moe.num_experts and moe.shared_expert_size:
        split["moe.shared_expert_size"] = moe.shared_expert_size
    for key, size in split.items():
        if size % tensor:
            fits = f"must divide {key} ({size}); {_fitting(divisors(math.gcd(*split.values())))}"
            raise ConfigError("parallel.tensor", tensor, fits)


def _context(config: RunConfig, world_size: int) -> None:
    p, length = config.parallel, config.model.seq_length
    if p.context > 1 and length % (2 * p.context * p.tensor):
        fitting = [1, *(c for c in divisors(length) if c > 1 and length % (2 * c * p.tensor) == 0)]
        # Every context rank takes an early and a late chunk, so that causal work is even.
        fits = f"2 * context * parallel.tensor must divide model.seq_length ({length}); {_fitting(fitting)}"
        raise ConfigError("parallel.context", p.context, fits)


def _sequence(config: RunConfig, world_size: int) -> None:
    p, stride, length = config.parallel, config.sequence.stride, config.model.seq_length
    if stride == 1:
        return
    strided_layers(config.sequence, config.model.num_layers)
    in_decoder = len(strided_decoder_layers(config.sequence, config.model.decoder_layers)) > 0
    if config.sequence.method == "average_pool" and p.context > 1:
        # Its windows reach into the chunk before, which lies on another context rank.
        fits = f"sequence.method average_pool pools over the {p.context} ranks' borders; 1 would fit"
        raise ConfigError("parallel.context", p.context, fits)
    # Every slice of the sequence begins at an anchor: tensor ranks' slices, and context ranks' two chunks.
    slices = [length // (p.context * p.tensor), *([length // (2 * p.context)] if p.context > 1 else [])]
    named = "model.seq_length"
    if in_decoder:
        slices.append(config.model.decoder_length // p.tensor)
        named += " and of model.decoder_seq_length"
    if any(n % stride for n in slices):
        fits = f"must divide a rank's share of {named} ({' and '.join(map(str, slices))}); "
        raise ConfigError("sequence.stride", stride, fits + _fitting(divisors(math.gcd(*slices))))


def _stages(config: RunConfig, world_size: int) -> None:
    p, layers = config.parallel, config.model.num_layers
    uneven = {"first": p.first_stage_layers, "last": p.last_stage_layers}
    given = {name: n for name, n in uneven.items() if n is not None}
    for name, n in given.items():
        if p.pipeline == 1:
            raise ConfigError(f"parallel.{name}_stage_layers", n, "needs parallel.pipeline above 1; null would fit")
    split = stage_layers(layers, p.pipeline, **uneven)
    if split is None and given:
        name = next(iter(given))
        fitting = [n for n in range(1, layers) if stage_layers(layers, p.pipeline, **{**uneven, name: n})]
        fits = f"the other layers of model.num_layers ({layers}) must share out evenly over the other stages of "
        fits += f"parallel.pipeline ({p.pipeline}); {_fitting(fitting)}"
        raise ConfigError(f"parallel.{name}_stage_layers", given[name], fits)
    if split is None:
        fits = f"must divide model.num_layers ({layers}), or name parallel.first_stage_layers or parallel."
        fits += f"last_stage_layers; {_fitting(divisors(layers))}"
        raise ConfigError("parallel.pipeline", p.pipeline, fits)
    if p.virtual_pipeline > 1 and p.pipeline == 1:
        raise ConfigError(
            "parallel.virtual_pipeline", p.virtual_pipeline, "needs parallel.pipeline above 1; 1 would fit"
        )
    if any(n % p.virtual_pipeline for n in split):
        stages = ", ".join(map(str, sorted(set(split))))
        fits = f"must divide the layers of every pipeline rank ({stages}); {_fitting(divisors(math.gcd(*split)))}"
        raise ConfigError("parallel.virtual_pipeline", p.virtual_pipeline, fits)


def _world(config: RunConfig, world_size: int) -> None:
    p = config.parallel
    expert_ranks = p.expert_tensor * p.expert * p.pipeline
    start = f"; {start_with(smallest_world(p))}"
    product = 1
    for name in ("tensor", "pipeline", "context"):
        product *= getattr(p, name)
        if world_size % product:
            fits = f"parallel.tensor * pipeline * context ({_model_ranks(config)}) must divide the world size "
            raise ConfigError(f"parallel.{name}", getattr(p, name), f"{fits}({world_size}){start}")
    if world_size % expert_ranks:
        name = "expert" if p.expert > 1 else "expert_tensor"
        fits = f"parallel.expert * expert_tensor * pipeline ({expert_ranks}) must divide the world size ({world_size})"
        raise ConfigError(f"parallel.{name}", getattr(p, name), fits + start)
    derived = data_parallel_size(config, world_size)
    if p.data not in (None, derived):
        fits = f"world size {world_size} / (tensor * pipeline * context) is {derived}; {derived} would fit, or"
        raise ConfigError("parallel.data", p.data, fits + start[1:])


def _engine(config: RunConfig, world_size: int) -> None:
    engine, stage = config.train.engine, config.parallel.zero_stage
    if config.train.transformer_engine == "on":
        check_installed("train.transformer_engine", "on", "transformer_engine", "off")
    if engine == "megatron":
        if stage != 1:
            fits = "needs train.engine deepspeed; 1 would fit (megatron has parallel.distributed_optimizer)"
            raise ConfigError("parallel.zero_stage", stage, fits)
        return
    check_installed("train.engine", engine)
    check_zero(config)


def _batch(config: RunConfig, world_size: int) -> None:
    t, p = config.train, config.parallel
    at_once = _samples_at_once(config, world_size)
    if t.global_batch_size % at_once:
        fits = f"must be a multiple of train.micro_batch_size ({t.micro_batch_size}) * data-parallel ranks "
        fits += f"({data_parallel_size(config, world_size)}); {_multiples(t.global_batch_size, at_once)}"
        raise ConfigError("train.global_batch_size", t.global_batch_size, fits)
    count = num_microbatches(config, world_size)
    if p.virtual_pipeline > 1 and count % p.pipeline:
        fits = (
            f"parallel.virtual_pipeline needs a multiple of parallel.pipeline ({p.pipeline}) micro-batches, this makes "
        )
        fits += f"{count}; {_multiples(t.global_batch_size, at_once * p.pipeline)}"
        raise ConfigError("train.global_batch_size", t.global_batch_size, fits)


def _overlap(config: RunConfig, world_size: int) -> None:
    t = config.train
    if not config.overlap.microbatch_halves:
        return
    if config.altup.correct == "delayed":
        fits = "with altup.correct delayed two layers are under way already; false would fit"
        raise ConfigError("overlap.microbatch_halves", True, fits)
    if config.moe.num_experts and config.moe.dispatcher != "alltoall":
        # Megatron's all-gather dispatcher has one global buffer: two halves would overwrite each other's gradients.
        fits = "needs moe.dispatcher alltoall; false would fit"
        raise ConfigError("overlap.microbatch_halves", True, fits)
    if t.micro_batch_size % 2:
        fits = f"overlap.microbatch_halves cuts it in two; {_multiples(t.micro_batch_size, 2)}"
        raise ConfigError("train.micro_batch_size", t.micro_batch_size, fits)


def _optimizer(config: RunConfig, world_size: int) -> None:
    p = config.parallel
    if config.optim.optimizer == "adamw":
        return
    # Its factored moments and its clipping are of whole tensors.
    refused: list[tuple[bool, str, object, object]] = [
        (p.tensor > 1, "parallel.tensor", p.tensor, 1),
        (p.expert_tensor > 1, "parallel.expert_tensor", p.expert_tensor, 1),
        (p.distributed_optimizer, "parallel.distributed_optimizer", True, "false"),
        (config.train.engine != "megatron", "train.engine", config.train.engine, "megatron"),
    ]
    for wrong, key, value, fit in refused:
        if wrong:
            raise ConfigError(key, value, f"optim.optimizer adafactor needs tensors whole on a rank; {fit} would fit")


def check_files(config: RunConfig, world_size: int) -> None:
    """What must lie on the disk of a run that starts. Raises ConfigError."""
    check_data(config, world_size)
    run_dir = config.log.run_dir
    if not run_dir or (Path(run_dir).exists() and not Path(run_dir).is_dir()):
        raise ConfigError("log.run_dir", run_dir, "must name a directory; it is made if it does not exist")
    prompts = config.log.sample_prompts_file
    if prompts is not None and not Path(prompts).is_file():
        raise ConfigError("log.sample_prompts_file", prompts, "there is no such file; a text file, a prompt a line")


CHECKS: list[Callable[[RunConfig, int], None]] = [
    _ranges,
    _arch,
    _positions,
    _heads,
    _altup,
    _experts,
    _tensor,
    _context,
    _sequence,
    _stages,
    _world,
    _engine,
    _batch,
    _overlap,
    check_schedule,
    check_parametrization,
    check_hang_timeout,
    check_checkpoints,
    _optimizer,
    check_generation,
    check_files,
]
"""In this order: later ones divide by what earlier ones found positive."""
