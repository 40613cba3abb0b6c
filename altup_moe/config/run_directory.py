"""Names of all files and folders in a run directory.

RUN/config.yaml     the resolved configuration
    metrics.jsonl   one JSON object for each step
    metrics.removed.jsonl  lines that a resumed run has moved out of it
    routing.jsonl   routes of every layer and expert, a line for some steps (log.routing_interval)
    starts.jsonl    one line for each start: after which step, when, on what
    report.html     the page that `altup-moe show` writes
    samples.jsonl   texts of log.sample_interval, one JSON object each: step, prompt, text
    lock            held while a run trains here (see locks.py)
    tokenizer/      the run's own copy of its tokenizer
    checkpoints/    see checkpoint/store.py
    data/           tokens, if data.cache does not name another directory
    tensorboard/    event files
    profile/        traces of log.profile_steps
    kernels/        compiled kernels
    watchdog/       hang_DATE.txt: report of a hang; rank_NNNNN.json while it trains on several ranks
"""

from __future__ import annotations

from pathlib import Path

METRICS, TOKENIZER = "metrics.jsonl", "tokenizer"
ROUTING, STARTS = "routing.jsonl", "starts.jsonl"


GENERATION = "generation_config.json"
"""File in a tokenizer's directory with the ids and rules of generation, as Hugging Face writes it beside weights."""


def config_file(run_dir: str | Path) -> Path:
    """The run's resolved configuration."""
    return Path(run_dir) / "config.yaml"


def metrics_file(run_dir: str | Path) -> Path:
    """The run's metrics, one JSON object for each step."""
    return Path(run_dir) / METRICS


def removed_metrics_file(metrics: Path) -> Path:
    """Lines that a resumed run has moved out of its metrics: of steps done again, and what cannot be read."""
    return metrics.with_suffix(".removed.jsonl")


def routing_file(run_dir: str | Path) -> Path:
    """Routes of every layer and expert, one JSON object for each `log.routing_interval` steps."""
    return Path(run_dir) / ROUTING


def samples_file(run_dir: str | Path) -> Path:
    """Texts that the model wrote while it trained, one JSON object for each prompt and time."""
    return Path(run_dir) / "samples.jsonl"


def starts_file(run_dir: str | Path) -> Path:
    """The run's starts, one JSON object for each."""
    return Path(run_dir) / STARTS


def report_file(run_dir: str | Path) -> Path:
    """The page of the run, once `altup-moe show` has written it."""
    return Path(run_dir) / "report.html"


def comparison_file(run_dir: str | Path) -> Path:
    """The page of several runs, of which this one is the first."""
    return Path(run_dir) / "comparison.html"


def tokenizer_dir(run_dir: str | Path) -> Path:
    """Directory of the run's own copy of its tokenizer."""
    return Path(run_dir) / TOKENIZER


def checkpoints_dir(run_dir: str | Path) -> Path:
    """Directory of the run's checkpoints."""
    return Path(run_dir) / "checkpoints"


def data_dir(run_dir: str | Path) -> Path:
    """Directory of the run's tokens, if ``data.cache`` does not name another."""
    return Path(run_dir) / "data"


def tensorboard_dir(run_dir: str | Path) -> Path:
    """Directory of TensorBoard's event files."""
    return Path(run_dir) / "tensorboard"


def profile_dir(run_dir: str | Path) -> Path:
    """Directory of the traces of ``log.profile_steps``."""
    return Path(run_dir) / "profile"


def kernels_dir(run_dir: str | Path) -> Path:
    """Directory of torch.compile's cache."""
    return Path(run_dir) / "kernels"


def watchdog_dir(run_dir: str | Path) -> Path:
    """Directory in which the watchers of a run's ranks meet, and of their reports."""
    return Path(run_dir) / "watchdog"
