"""Versions of the libraries that write a checkpoint, for its manifest."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch


def library_versions() -> dict[str, str]:
    """Library -> installed version; ``torch.cuda``: the CUDA version torch was built for, or ``none``."""
    found = {}
    for name in ("altup-moe", "torch", "megatron-core", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found | {"torch.cuda": torch.version.cuda or "none"}
