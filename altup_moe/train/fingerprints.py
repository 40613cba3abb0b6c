"""What this rank would train with, as a `Fingerprint`: ranks compare theirs before the first step."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from altup_moe.checkpoint.manifest import DIGEST
from altup_moe.config import RunConfig
from altup_moe.config.plugins import plugin_files
from altup_moe.parallel.agreement import Fingerprint

if TYPE_CHECKING:
    from altup_moe.train.resume import ResumePoint
    from altup_moe.train.samples import Samples

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("torch", "megatron-core", "numpy", "safetensors")
"""Always used. Others count where the configuration uses them (`_libraries`)."""
ENVIRONMENT = (
    *("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG", "TRITON_INTERPRET"),
    *("TORCH_BLAS_PREFER_CUBLASLT", "NCCL_ALGO", "NCCL_PROTO", "CUDA_DEVICE_MAX_CONNECTIONS", "ALTUP_MOE_PLUGINS"),
)
"""Variables that change what is computed, or the order of what is sent."""
ENVIRONMENT_PREFIX = "NVTE_"
"""Transformer Engine's own settings."""
SHOWN_DIGITS = 12
"""Digits of a hash that a message shows."""


def program_fingerprint(config: RunConfig, device: str) -> Fingerprint:
    """What a rank knows before it has opened a file: configuration, code, libraries, environment.

    Args:
        device: kind of device that computes.
    """
    return Fingerprint(
        {
            **_keys(config),
            **{f"version of {name}": found for name, found in _libraries(config)},
            **{f"environment {name}": value for name, value in _environment(os.environ)},
            **code_hashes(),
            **{f"code {file.name}": _file_sha256(file) for file in plugin_files()},
            "device": device,
        }
    )


def files_fingerprint(config: RunConfig, resume: ResumePoint | None, samples: Samples | None) -> Fingerprint:
    """What a rank has found on its disks.

    Args:
        config: with what depends on the checkpoint.
        resume: the checkpoint that it goes on from. samples: None where all batches are the caller's own.
    """
    tokens, tokenizer = (samples.fingerprint, samples.tokenizer.sha256) if samples is not None else ("none", "none")
    return Fingerprint(
        {
            **_keys(config),
            "tokens of the data": tokens[:SHOWN_DIGITS],
            "tokenizer": tokenizer[:SHOWN_DIGITS],
            "checkpoint to go on from": _checkpoint(resume),
        }
    )


def _keys(config: RunConfig) -> dict[str, str]:
    return {
        f"{section}.{key}": json.dumps(value)
        for section, values in config.to_dict().items()
        for key, value in values.items()
    }


@cache
def code_hashes(package: Path = PACKAGE) -> Mapping[str, str]:
    """Hash of every Python file of this package, by "code FILE". Made once: code does not change while it runs."""
    files = sorted(package.rglob("*.py"))
    return {f"code {file.relative_to(package.parent).as_posix()}": _file_sha256(file) for file in files}


def _file_sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:SHOWN_DIGITS]


def _libraries(config: RunConfig) -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    backend = config.moe.backend if config.moe.num_experts else ""
    used = {
        "deepspeed": config.train.engine == "deepspeed" or backend == "deepspeed",
        "tutel": backend == "tutel",
        "transformer-engine": config.train.transformer_engine != "off",
        "triton": config.altup.kernel not in ("torch", "compile"),
    }
    for name in (*LIBRARIES, *(name for name, needed in used.items() if needed)):
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "none"


def _environment(variables: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in sorted(variables):
        if name in ENVIRONMENT or name.startswith(ENVIRONMENT_PREFIX):
            yield name, variables[name]


def _checkpoint(resume: ResumePoint | None) -> str:
    """Name of its directory and hash of its manifest; "none" of a new run."""
    if resume is None:
        return "none"
    digest = (resume.directory / DIGEST).read_text(encoding="ascii", errors="replace")
    return f"{resume.directory.name} ({digest[:SHOWN_DIGITS]})"
