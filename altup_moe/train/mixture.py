"""The samples of a run of several corpora and tasks, in shares that hold over every stretch of the run."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from megatron.core.datasets.utils import Split
from torch import Tensor

from altup_moe.config import DataError, RunConfig
from altup_moe.config.data_checks import TASK_NAMES, mixture_entries, task_directories
from altup_moe.data.mixing import MixtureOrder, mixture_order
from altup_moe.data.named_tokenizers import tokenizer_directory
from altup_moe.data.prepare import data_cache
from altup_moe.data.tasks.registry import TASKS, TaskData, load_task
from altup_moe.data.tokenizer import Tokenizer, load_tokenizer
from altup_moe.train.samples import (
    CountedSamples,
    Samples,
    TokenFile,
    byte_lengths,
    corpus_samples,
    open_samples,
    open_token_file,
    prepared_prefix,
)
from altup_moe.train.task_samples import TaskSamples, examples_sha256


@dataclass(frozen=True)
class Component:
    """One part of a mixture: a corpus' token file or a task's samples.

    ``size``: samples of one epoch; ``notes``: what was left out or cut.
    """

    name: str
    weight: Fraction | None
    size: int
    fingerprint: str
    corpus: TokenFile | None = None
    task: dict[Split, TaskSamples] | None = None
    notes: tuple[str, ...] = ()

    def samples(self, config: RunConfig, split: Split, count: int | None) -> CountedSamples:
        """`count` samples, or None for one epoch."""
        if self.corpus is not None:
            return corpus_samples(config, self.corpus, split, count)
        assert self.task is not None
        return self.task[split]


class MixtureSamples:
    """Samples of several components in a fixed order. ``rewind``: a component that is at its end begins again."""

    def __init__(self, parts: Sequence[CountedSamples], order: MixtureOrder, length: int, rewind: bool) -> None:
        self.parts, self.order, self.length, self.rewind = parts, order, length, rewind

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        component, own = self.order[number]
        part = self.parts[component]
        return dict(part[own % len(part) if self.rewind else own])


def run_samples(config: RunConfig, *, scan: bool = True) -> Samples:
    """The samples of a run: those of data.corpus, or of data.mixture. Rank 0 calls it first and fetches things.

    Raises:
        DataError, ConfigError: as `open_samples`; a component of another tokenizer. UserError: what cannot be fetched.
    """
    if not config.data.mixture:
        return open_samples(config, prepared_prefix(config), scan=scan)
    directory = _tokenizer_dir(config)
    tokenizer = load_tokenizer(directory, config.data.add_special_tokens)
    entries = mixture_entries(config.data.mixture)
    components = [_component(config, name, weight, directory, tokenizer, scan) for name, weight in entries.items()]
    weights = [_weight(component, config.data.mixture_cap) for component in components]
    needed = config.train.steps * config.train.global_batch_size
    order = mixture_order(weights, needed)
    held = [c.samples(config, Split.valid, None) for c in components]
    train = [
        # A component that a short run never reaches still has its first sample.
        c.samples(config, Split.train, max(1, n))
        for c, n in zip(components, order.counts(needed), strict=True)
    ]
    valid_length = sum(len(part) for part in held)
    return Samples(
        train=MixtureSamples(train, order, needed, rewind=False),
        valid=MixtureSamples(held, mixture_order(weights, valid_length), valid_length, rewind=True),
        tokenizer=tokenizer,
        tokenizer_dir=directory,
        byte_lengths=byte_lengths(tokenizer),
        fingerprint=hashlib.sha256("".join(c.fingerprint for c in components).encode()).hexdigest(),
        notes=(
            *(f"{c.name}: {c.corpus.held_out}" for c in components if c.corpus),
            *(note for c in components for note in c.notes),
        ),
    )


def _tokenizer_dir(config: RunConfig) -> Path:
    """data.tokenizer, or the tokenizer of data.corpus."""
    if config.data.tokenizer is not None:
        return tokenizer_directory(config.data.tokenizer, data_cache(config))
    return open_token_file(config, prepared_prefix(config), scan=False).prepared.tokenizer_dir


def _component(
    config: RunConfig, name: str, weight: Fraction | None, directory: Path, tokenizer: Tokenizer, scan: bool
) -> Component:
    if name in TASK_NAMES:
        return _task(config, name, weight, tokenizer, scan)
    file = open_token_file(config, prepared_prefix(config, name, directory), scan=scan)
    if file.tokenizer.sha256 != tokenizer.sha256:
        raise DataError(file.prepared.tokenizer_dir, f"is not the tokenizer of the mixture, which is {directory}")
    size = len(corpus_samples(config, file, Split.train, None))
    return Component(name, weight, size, file.prepared.manifest.bin_sha256, corpus=file)


def _task(config: RunConfig, name: str, weight: Fraction | None, tokenizer: Tokenizer, scan: bool) -> Component:
    """A task's splits. With ``scan``, what is cut is counted."""
    files, cache, task = task_directories(config.data.task_files), data_cache(config), TASKS[name]
    loaded = {
        Split.train: load_task(task, "train", files, cache),
        Split.valid: load_task(task, "validation", files, cache),
    }
    samples = {
        split: TaskSamples(
            task,
            [e for e in part.examples if e.trains],
            tokenizer,
            config.model,
            config.train.seed,
            shuffled=split is Split.train,
        )
        for split, part in loaded.items()
    }
    train = samples[Split.train]
    notes = [_note(f"{name}, {split.name}", part, samples[split]) for split, part in loaded.items()] if scan else []
    sha256 = examples_sha256(train.examples, train.room)
    return Component(name, weight, len(train), sha256, task=samples, notes=tuple(filter(None, notes)))


def _note(part: str, loaded: TaskData, samples: TaskSamples) -> str:
    """What of a task's split was left out or cut; empty if nothing."""
    counts = {
        f"{loaded.unlabelled:,} of {loaded.rows:,} rows have no label and are left out": loaded.unlabelled,
        f"{samples.left_out:,} examples are left out: question or answer are too long": samples.left_out,
        f"{(cut := samples.cut()):,} of {len(samples):,} examples have their passage cut": cut,
    }
    found = [text for text, count in counts.items() if count]
    return f"{part}: {'; '.join(found)} (model.seq_length {samples.room.sequence})" if found else ""


def _weight(component: Component, cap: int | None) -> Fraction:
    """Its weight; or its number of samples, up to the cap (examples-proportional mixing, arXiv 1910.10683, 3.5.2)."""
    return component.weight or Fraction(component.size if cap is None else min(component.size, cap))
