"""Checks of the section `data`: corpora, mixtures, files of tasks, and objectives that fit the architecture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

from altup_moe.config.errors import ConfigError
from altup_moe.config.schema import RunConfig
from altup_moe.config.text_corpora import prepare_hint

CORPUS_NAMES = ("python-docs", "wikipedia-sample")
"""Names of corpora (of `altup_moe.data.corpora.CORPORA`, which this layer cannot import)."""
ADDED_CORPORA: list[str] = []
"""Names of those that a program has added (`altup_moe.api.register_corpus`)."""
TOKENIZER_NAMES = ("t5",)
"""Names of tokenizers (of `altup_moe.data.named_tokenizers.TOKENIZERS`)."""
TASK_NAMES = (
    *("squad", "squad-bigbench", "squad-bigbench-sentences", "boolq", "cb", "copa", "multirc", "record", "rte", "wic"),
    *("wsc", "cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "glue_rte", "wnli", "rotten-tomatoes"),
)
"""Names of tasks (of `altup_moe.data.tasks.registry.TASKS`)."""


def check_data(config: RunConfig, world_size: int) -> None:
    """Raise ConfigError for the first value of `data` that does not fit."""
    data, row = config.data, config.model.architecture
    if data.objective is not None and data.objective not in row.objectives:
        fits = f"model.arch {row.name} reads inputs and writes targets; {', '.join(row.objectives)} or null would fit"
        raise ConfigError("data.objective", data.objective, fits)
    if row.encoder_decoder and config.model.decoder_length < 2:
        raise ConfigError("model.decoder_seq_length", config.model.decoder_length, "at least 2 would fit")
    if data.tokenizer is not None and data.tokenizer not in TOKENIZER_NAMES and not Path(data.tokenizer).is_dir():
        named = " or ".join(TOKENIZER_NAMES)
        fits = f"is not a directory; one that holds a Hugging Face tokenizer would fit, {named}, or null"
        raise ConfigError("data.tokenizer", data.tokenizer, fits)
    if not data.mixture or data.tokenizer is None:
        check_corpus("data.corpus", data.corpus, follows=prepare_hint(data.corpus, config))
    for name in mixture_entries(data.mixture):
        if name not in TASK_NAMES:
            check_corpus("data.mixture", name, f"{', '.join(TASK_NAMES)}, ", prepare_hint(name, config))
    check_task_files("data.task_files", data.task_files)


def check_corpus(key: str, corpus: str, others: str = "", follows: str = "") -> None:
    """Raise ConfigError unless `corpus` is a known name or the path prefix of prepared data that exists.

    Args:
        others: what else would fit, with a comma. follows: end of the message, of text that has to be prepared.
    """
    if is_corpus(corpus):
        return
    if follows:
        raise ConfigError(key, corpus, f"is text, not tokens yet{follows}")
    names = " or ".join((*CORPUS_NAMES, *ADDED_CORPORA))
    fits = f"there is no file {corpus}.idx; {others}{names} would fit, or the path prefix of a "
    raise ConfigError(key, corpus, fits + "dataset written by altup-moe prepare-data")


def is_corpus(corpus: str) -> bool:
    """Whether a corpus has a known name, or is a path prefix with prepared data."""
    return corpus in (*CORPUS_NAMES, *ADDED_CORPORA) or Path(f"{corpus}.idx").is_file()


def mixture_entries(entries: Sequence[str]) -> dict[str, Fraction | None]:
    """Component -> weight of a mixture; the weight is None where none is given.

    Raises:
        ConfigError: a name occurs twice, a weight is not above 0, or only some components have weights.
    """
    found: dict[str, Fraction | None] = {}
    for entry in entries:
        name, equals, text = entry.rpartition("=")
        weight = _number(text) if equals else None
        if weight is None:  # a path may hold an equals sign
            name = entry
        elif weight <= 0:
            raise ConfigError("data.mixture", entry, "a weight must be above 0, and finite")
        if not name or name in found:
            raise ConfigError("data.mixture", entry, "NAME or NAME=WEIGHT would fit, each name once")
        found[name] = weight
    weighted = [weight is not None for weight in found.values()]
    if any(weighted) and not all(weighted):
        raise ConfigError("data.mixture", list(entries), "weights for all of them or for none would fit")
    return found


def task_directories(entries: Iterable[str]) -> dict[str, Path]:
    """Task -> directory of local data."""
    return {name: Path(directory) for name, _, directory in (entry.partition("=") for entry in entries)}


def task_names(key: str, text: str) -> list[str]:
    """Names of tasks, separated by commas. Raises ConfigError for an unknown one."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in TASK_NAMES:
            raise ConfigError(key, name, f"no such task; {', '.join(TASK_NAMES)} would fit")
    return names


def check_task_files(key: str, entries: Iterable[str]) -> None:
    """Raise ConfigError unless each entry is TASK=DIRECTORY."""
    for entry in entries:
        name, _, directory = entry.partition("=")
        if name not in TASK_NAMES:
            raise ConfigError(key, entry, f"TASK=DIRECTORY would fit, the task one of {', '.join(TASK_NAMES)}")
        if not directory or not Path(directory).is_dir():
            raise ConfigError(key, entry, f"there is no directory {directory or '(none given)'}")


def _number(text: str) -> Fraction | None:
    """A weight as written; a fraction too, as in 1/3. One that fp64 cannot hold is told apart before it is computed:
    the digits of 1e999999999 would fill the memory.
    """
    try:
        if "/" not in text and not 1e-300 < abs(float(text)) < 1e300:
            return Fraction(0)
        return Fraction(text)
    except (ValueError, ZeroDivisionError, OverflowError):
        return None
