"""Names of a run directory: every file and folder that a run keeps, in one place.

RUN/config.yaml     the resolved configuration
    metrics.jsonl   one object a step
    tokenizer/      the run's own copy of its tokenizer
    checkpoints/    see checkpoint/store.py
    data/           tokens, where data.cache names no other place
    tensorboard/    event files
    profile/        traces of log.profile_steps
    kernels/        compiled kernels
"""

from __future__ import annotations

from pathlib import Path

METRICS, TOKENIZER = "metrics.jsonl", "tokenizer"


def config_file(run_dir: str | Path) -> Path:
    """The run's resolved configuration."""
    return Path(run_dir) / "config.yaml"


def metrics_file(run_dir: str | Path) -> Path:
    """The run's records, one JSON object a step."""
    return Path(run_dir) / METRICS


def tokenizer_dir(run_dir: str | Path) -> Path:
    """Directory of the run's own copy of its tokenizer."""
    return Path(run_dir) / TOKENIZER


def checkpoints_dir(run_dir: str | Path) -> Path:
    """Directory of the run's checkpoints."""
    return Path(run_dir) / "checkpoints"


def data_dir(run_dir: str | Path) -> Path:
    """Directory of the run's tokens, where ``data.cache`` names no other."""
    return Path(run_dir) / "data"


def tensorboard_dir(run_dir: str | Path) -> Path:
    """Directory of TensorBoard's event files."""
    return Path(run_dir) / "tensorboard"


def profile_dir(run_dir: str | Path) -> Path:
    """Directory of the traces of ``log.profile_steps``."""
    return Path(run_dir) / "profile"


def kernels_dir(run_dir: str | Path) -> Path:
    """Directory where torch.compile keeps what it compiled."""
    return Path(run_dir) / "kernels"
