"""Small whole checkpoints for tests: a two-layer MoE with wide stream, weights in bf16 or fp32, Adam's moments."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from altup_moe.checkpoint.manifest import Manifest, SliceReader
from altup_moe.checkpoint.shards import item_type
from altup_moe.checkpoint.slices import full_slice, slice_shape
from altup_moe.checkpoint.write import NamedSlice, TensorSpec, WritePlan, plan_files, write_checkpoint
from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, RunConfig
from altup_moe.parallel.parameter_mapping import TensorSlice
from altup_moe.parallel.parameter_names import global_shapes

MODEL = ModelConfig(
    num_layers=2,
    hidden_size=8,
    ffn_hidden_size=12,
    num_attention_heads=2,
    num_query_groups=1,
    seq_length=8,
    vocab_size=16,
)
CONFIG = RunConfig(
    model=MODEL, altup=AltUpConfig(width=2), moe=MoEConfig(num_experts=3, layer_freq=2, top_k=2, ffn_hidden_size=4)
)
COEFFICIENT = ".altup."


def forms_of(config: RunConfig = CONFIG, weights: str = "BF16", optimizer: bool = True) -> dict[str, TensorSpec]:
    """Every stored tensor of a run's model; coefficients are fp32 whatever the weights are."""
    specs = {}
    for name, shape in global_shapes(config).items():
        dtype = "F32" if COEFFICIENT in name else weights
        specs[f"weights/{name}"] = TensorSpec(shape, dtype)
        kinds = ("exp_avg", "exp_avg_sq", *(("main",) if dtype != "F32" else ())) if optimizer else ()
        specs |= {f"{kind}/{name}": TensorSpec(shape, "F32") for kind in kinds}
    specs["rng/0/cpu"] = TensorSpec((40,), "U8")
    return specs


def values_of(specs: Mapping[str, TensorSpec], seed: int = 0) -> dict[str, np.ndarray]:
    """Random items of every tensor; a name's do not depend on the others."""
    values = {}
    for name, spec in specs.items():
        draw = np.random.default_rng([seed, zlib.crc32(name.encode())])
        kind = item_type(spec.dtype)
        values[name] = draw.integers(0, np.iinfo(kind).max, spec.shape, kind, endpoint=True)
    return values


def head_of(step: int = 3, config: RunConfig = CONFIG) -> Manifest:
    """A manifest without files and tensors."""
    return Manifest(
        step=step,
        consumed_samples=config.train.global_batch_size * step,
        skipped_steps=0,
        optimizer_steps=step,
        scheduler_steps=step,
        world_size=1,
        data_fingerprint="abc",
        config=config.to_dict(),
        libraries={"torch": "2"},
    )


def two_ranks(specs: Mapping[str, TensorSpec], limit: int = 4096) -> WritePlan:
    """Weights of rank 0 whole; what the optimizer holds in halves of rows on two ranks."""
    plan: dict[int, list[NamedSlice]] = {0: [], 1: []}
    for name, spec in specs.items():
        half = spec.shape[0] // 2
        if name.startswith(("weights/", "rng/")) or not half:
            plan[0].append(NamedSlice(name, full_slice(spec.shape)))
            continue
        for rank, rows in enumerate(((0, half), (half, spec.shape[0]))):
            plan[rank].append(NamedSlice(name, (rows, *full_slice(spec.shape[1:]))))
    return {file: held for rank, parts in plan.items() for file, held in plan_files(rank, parts, specs, limit).items()}


def reader_of(values: Mapping[str, np.ndarray]) -> SliceReader:
    """What `write_checkpoint` reads from."""

    def read(name: str, tensor_slice: TensorSlice) -> np.ndarray:
        return np.ascontiguousarray(values[name][tuple(slice(a, b) for a, b in tensor_slice)]).reshape(
            slice_shape(tensor_slice)
        )

    return read


def save(root: Path, step: int = 3, seed: int = 0, **spec: object) -> Path:
    """A whole checkpoint in several files."""
    specs = forms_of(**spec)  # type: ignore[arg-type]
    return write_checkpoint(root, head_of(step), specs, two_ranks(specs), reader_of(values_of(specs, seed)))


def with_model(**changes: object) -> RunConfig:
    """CONFIG with other values of its model section."""
    return replace(CONFIG, model=replace(MODEL, **changes))  # type: ignore[arg-type]
