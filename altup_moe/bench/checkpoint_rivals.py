"""What `bench checkpoint` saves and loads: a model of a wanted size, by our checkpoints and by plain safetensors."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from altup_moe.checkpoint.manifest import Manifest
from altup_moe.checkpoint.slices import full_slice
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import step_name
from altup_moe.checkpoint.tensors import TORCH_DTYPES, items
from altup_moe.checkpoint.write import TensorSpec, single_process_plan, write_checkpoint
from altup_moe.config import AltUpConfig, ModelConfig, MoEConfig, RunConfig
from altup_moe.config.files import fsync
from altup_moe.parallel.parameter_names import global_shapes, is_buffer

LARGE = 128
"""From this size in megabytes on, the model is as wide as a small real one."""


def benchmark_model(megabytes: int) -> tuple[RunConfig, dict[str, TensorSpec]]:
    """An MoE run whose weights (bf16), fp32 copies and two moments take about `megabytes`, and all its tensors."""
    hidden, vocabulary = (256, 32_000) if megabytes >= LARGE else (32, 256)
    config = RunConfig(
        model=ModelConfig(
            hidden_size=hidden,
            num_attention_heads=8,
            num_query_groups=4,
            ffn_hidden_size=4 * hidden,
            vocab_size=vocabulary,
        ),
        altup=AltUpConfig(width=2),
        moe=MoEConfig(num_experts=8, ffn_hidden_size=2 * hidden),
    )
    specs: dict[str, TensorSpec] = {}
    for layers in range(1, 10_000):
        config = replace(config, model=replace(config.model, num_layers=layers))
        larger = _specs(config)
        if specs and size_of(larger) > 1e6 * megabytes:
            break
        chosen, specs = config, larger
    return chosen, specs


def _specs(config: RunConfig) -> dict[str, TensorSpec]:
    specs = {}
    for name, shape in global_shapes(config).items():
        full = ".altup." in name or is_buffer(name)
        specs[f"weights/{name}"] = TensorSpec(shape, "F32" if full else "BF16")
        kinds = () if is_buffer(name) else ("exp_avg", "exp_avg_sq", *(() if full else ("main",)))
        specs |= {f"{kind}/{name}": TensorSpec(shape, "F32") for kind in kinds}
    return specs


def size_of(specs: dict[str, TensorSpec]) -> int:
    """Bytes of all tensors."""
    return sum(torch.Size(spec.shape).numel() * TORCH_DTYPES[spec.dtype].itemsize for spec in specs.values())


def head_of(config: RunConfig, step: int = 1) -> Manifest:
    """A manifest without files and tensors."""
    return Manifest(step, config.train.global_batch_size * step, 0, step, step, 1, "", config.to_dict())


def forget(directory: Path) -> None:
    """Ask the system to drop a directory's files from its page cache."""
    for path in directory.rglob("*.safetensors"):
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


class SavedBothWays:
    """The same tensors, saved and loaded by our checkpoints and by plain safetensors."""

    def __init__(self, directory: Path, megabytes: int) -> None:
        self.config, self.specs = benchmark_model(megabytes)
        self.bytes = size_of(self.specs)
        draw = torch.Generator().manual_seed(0)
        self.tensors = {
            n: torch.randn(f.shape, generator=draw).to(TORCH_DTYPES[f.dtype]) for n, f in self.specs.items()
        }
        self.targets = {name: torch.zeros_like(tensor) for name, tensor in self.tensors.items()}
        self.ours, self.plain = directory / "ours", directory / "plain"

    def save_ours(self) -> None:
        """Save with hashes, fsync, manifest, check and rename."""
        plan = single_process_plan(self.specs)
        head = head_of(self.config)
        write_checkpoint(
            self.ours, head, self.specs, plan, lambda name, tensor_slice: items(self.tensors[name]), threads=2
        )

    def save_plain(self) -> None:
        """Save one safetensors file and flush it."""
        self.plain.mkdir()
        save_file(self.tensors, self.plain / "all.safetensors")
        fsync(self.plain / "all.safetensors")

    def load_ours(self) -> None:
        """Open, verify all hashes, read."""
        with Checkpoint(self.ours / step_name(1)) as checkpoint:
            checkpoint.verify()
            for name, tensor in self.targets.items():
                checkpoint.read_into(name, full_slice(tensor.shape), items(tensor))

    def load_plain(self) -> None:
        """Load the safetensors file and copy it into the tensors."""
        for name, tensor in load_file(self.plain / "all.safetensors").items():
            self.targets[name].copy_(tensor)

    def check(self) -> None:
        """Assert that the last load read the saved bits, and clear the tensors."""
        for name, tensor in self.tensors.items():
            assert torch.equal(tensor, self.targets[name]), name
            self.targets[name].zero_()
