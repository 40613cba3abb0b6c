"""Checkpoints of tiny models with random coefficients, skewed routing and made-up optimizer state."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from altup_moe.checkpoint.manifest import Manifest
from altup_moe.checkpoint.slices import full_slice
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.tensors import TORCH_DTYPES, items, load_weights
from altup_moe.checkpoint.write import TensorSpec, single_process_plan, write_checkpoint
from altup_moe.config import ParallelConfig, RunConfig
from altup_moe.model.reference.config import AltUpMoEConfig
from altup_moe.model.reference.gpt import AltUpMoEForCausalLM
from altup_moe.parallel.parameter_mapping import TensorSlice
from altup_moe.parallel.parameter_names import global_shapes, is_buffer
from altup_moe.parallel.seeds import normal
from tests.distributed.cases import skewed, small

RNG = "rng/00000/cpu"
STEP = 7


def tiny(**sections: dict) -> RunConfig:
    """A small run on one rank; dense unless `moe` says otherwise. Small activations: epsilons in norms are felt."""
    model = {"ffn_hidden_size": 24, **sections.pop("model", {})}
    moe = {"num_experts": 0, **sections.pop("moe", {})}
    return replace(small("one", model=model, moe=moe, **sections), parallel=ParallelConfig())


def weight(name: str, shape: tuple[int, ...], config: RunConfig) -> Tensor:
    """A global tensor of the tiny model, fp32. Embeddings are small, so that the final norm feels its epsilon."""
    value = skewed(name, shape, full_slice(shape), config)
    return value * 0.1 if name == "model.embed_tokens.weight" else value


def save(run: Path, config: RunConfig, optimizer: bool = True) -> Path:
    """Write a checkpoint of `config` into a run directory, as training would; returns its directory."""
    half = config.train.precision == "bf16"
    specs: dict[str, TensorSpec] = {RNG: TensorSpec((5,), "U8")}
    for name, shape in global_shapes(config).items():
        in_half = half and ".altup." not in name and not is_buffer(name)
        specs[f"weights/{name}"] = TensorSpec(shape, "BF16" if in_half else "F32")
        if optimizer and not is_buffer(name):
            kinds = ("exp_avg", "exp_avg_sq", *(("main",) if in_half else ()))
            specs |= {f"{kind}/{name}": TensorSpec(shape, "F32") for kind in kinds}

    def read(stored: str, tensor_slice: TensorSlice) -> np.ndarray:
        kind, _, name = stored.partition("/")
        if kind == "rng":
            return np.arange(5, dtype=np.uint8)
        shape = specs[stored].shape
        if kind in ("weights", "main"):
            value = weight(name, shape, config)
        else:
            value = normal(f"{kind}/{name}", shape, full_slice(shape), 1.0, seed=3)
            value = value.square() if kind == "exp_avg_sq" else value
        return items(value.to(TORCH_DTYPES[specs[stored].dtype]).contiguous())

    head = Manifest(
        STEP,
        STEP * config.train.global_batch_size,
        1,
        STEP - 1,
        STEP,
        1,
        "fingerprint",
        config.to_dict(),
        {"torch": "x"},
    )
    return write_checkpoint(run / "checkpoints", head, specs, single_process_plan(specs), read)


def reference(directory: Path, dtype: torch.dtype) -> AltUpMoEForCausalLM:
    """The reference model of a checkpoint. Its norms and coefficients too are of `dtype`."""
    with Checkpoint(directory) as checkpoint:
        model = AltUpMoEForCausalLM(AltUpMoEConfig.from_run(checkpoint.config)).to(dtype).eval()
        model.load_state_dict(load_weights(checkpoint), strict=True)
    return model


def tokens(config: RunConfig, samples: int = 4) -> Tensor:
    """Random tokens [samples, seq_length]."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(config.model.vocab_size, (samples, config.model.seq_length), generator=generator)


@torch.no_grad()
def difference(before: Path, after: Path, dtype: torch.dtype) -> float:
    """Largest difference of two checkpoints' logits over the largest logit."""
    model = reference(before, dtype)
    with Checkpoint(before) as checkpoint:
        ids = tokens(checkpoint.config)
    old = model(ids, use_cache=False).logits
    new = reference(after, dtype)(ids, use_cache=False).logits
    return float((new - old).abs().max() / old.abs().max())
