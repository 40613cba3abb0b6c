"""The samples of a run: windows over prepared data, and what the objective makes of them.

A sample's number and the seed alone say what it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from torch import Tensor

from altup_moe.config import ConfigError, RunConfig
from altup_moe.data.layouts import Arrays
from altup_moe.data.prepare import Prepared, data_cache, open_prepared, prepare_named
from altup_moe.data.recipes import SampleRecipe, recipe_of, sample_arrays, wants_sentinels
from altup_moe.data.split import TextPart, split_documents, split_summary, split_text, whole_documents
from altup_moe.data.tokenizer import Tokenizer, load_tokenizer, token_byte_lengths
from altup_moe.data.windows import EpochWindows, TokenWindows
from altup_moe.train.batches import SampleDataset

SPLITS = {Split.train: 0, Split.valid: 1}
"""What a split is called where samples are drawn."""


class CountedSamples(SampleDataset, Protocol):
    """Samples by number, and how many there are (of training samples: in one epoch, or as many as are needed)."""

    def __len__(self) -> int:
        """How many."""


class ObjectiveSamples:
    """Windows of tokens as an objective makes them into samples."""

    def __init__(self, windows: TokenWindows, recipe: SampleRecipe, seed: int, split: int) -> None:
        self.windows, self.recipe, self.seed, self.split = windows, recipe, seed, split

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return as_tensors(sample_arrays(self.recipe, self.windows[number], self.seed, self.split, number))


class GivenStart:
    """Samples in which the tokens that begin a document are given, never a label that counts."""

    def __init__(self, samples: CountedSamples, start: Sequence[int]) -> None:
        self.samples, self.start, self._ids = samples, tuple(start), torch.tensor(start)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        sample = dict(self.samples[number])
        # No text spells such a token, so that each one of them begins a document.
        counts = ~torch.isin(sample["labels"], self._ids)
        return {**sample, "loss_mask": sample["loss_mask"] * counts}


def as_tensors(arrays: Arrays) -> dict[str, Tensor]:
    """A sample as `micro_batches` takes it."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


@dataclass(frozen=True)
class Samples:
    """The training and validation samples of a run, and what is needed to speak of them.

    ``byte_lengths`` [V]: UTF-8 bytes that each token id stands for; ``fingerprint``: hash of the token files.
    ``notes``: what of the data is held out, was left out or cut, a line each.
    """

    train: CountedSamples
    valid: CountedSamples
    tokenizer: Tokenizer
    tokenizer_dir: Path
    byte_lengths: Tensor
    fingerprint: str
    notes: tuple[str, ...] = ()

    def valid_count(self, config: RunConfig) -> int:
        """Validation samples that one validation reads."""
        return min(config.train.eval_samples, len(self.valid))


@dataclass(frozen=True)
class TokenFile:
    """A verified token file, and its parts for training and validation with what is held out in words."""

    prefix: Path
    prepared: Prepared
    tokenizer: Tokenizer
    parts: dict[Split, TextPart]
    held_out: str = ""

    @property
    def document_start(self) -> tuple[int, ...]:
        """Ids that its documents begin with: the tokenizer's, or none where data was prepared without them."""
        start = self.tokenizer.document_start
        return start if tuple(self.prepared.index.document(0)[: len(start)].tolist()) == start else ()


def prepared_prefix(config: RunConfig, corpus: str | None = None, tokenizer: Path | None = None) -> Path:
    """Tokenise a named corpus (once; on one rank only) or find the user's data. Returns the path prefix.

    Args:
        corpus, tokenizer: other than `data.corpus` and `data.tokenizer`.
    """
    name, chosen = corpus or config.data.corpus, tokenizer or config.data.tokenizer
    sentinels = config.data.sentinels if wants_sentinels(config.model, config.data) else 0
    special = config.data.add_special_tokens
    return Path(prepare_named(name, config.model.vocab_size, chosen, data_cache(config), sentinels, special))


def open_token_file(config: RunConfig, prefix: Path, *, scan: bool = True, whole: bool = False) -> TokenFile:
    """Verify the data at `prefix`. Raises as `open_samples` does.

    Args:
        whole: do not split it; all of it is the validation part.
    """
    prepared = open_prepared(prefix, config.model.vocab_size, scan=scan)
    lengths, fraction = prepared.index.lengths, config.data.valid_fraction
    tokenizer = load_tokenizer(prepared.tokenizer_dir, config.data.add_special_tokens)
    if whole:
        return TokenFile(prefix, prepared, tokenizer, {Split.valid: whole_documents(lengths)})
    if config.data.shuffle == "run":
        train, valid = split_documents(lengths, fraction)
        parts = {Split.train: whole_documents(lengths, train), Split.valid: whole_documents(lengths, valid)}
        return TokenFile(prefix, prepared, tokenizer, parts, split_summary(lengths, valid))
    split = split_text(lengths, fraction)
    return TokenFile(prefix, prepared, tokenizer, {Split.train: split.train, Split.valid: split.valid}, split.summary)


def open_samples(config: RunConfig, prefix: Path, *, scan: bool = True) -> Samples:
    """Verify the data at `prefix` and index its samples. Reads only; builds its index in memory.

    Args:
        scan: also read every token once; one rank of a run is enough.

    Raises:
        DataError: a damaged file, or token ids outside model.vocab_size (file and offset).
        ConfigError: too little data for one sample of model.seq_length, or an objective that does not fit.
    """
    file = open_token_file(config, prefix, scan=scan)
    steps = config.train.steps * config.train.global_batch_size
    return Samples(
        train=corpus_samples(config, file, Split.train, steps),
        valid=corpus_samples(config, file, Split.valid, None),
        tokenizer=file.tokenizer,
        tokenizer_dir=file.prepared.tokenizer_dir,
        byte_lengths=byte_lengths(file.tokenizer),
        fingerprint=file.prepared.manifest.bin_sha256,
        notes=(file.held_out,),
    )


def open_corpus(config: RunConfig, corpus: str, tokenizer_dir: Path) -> tuple[CountedSamples, Tensor]:
    """All of another corpus in a run's own tokens: (samples, bytes of each token id [V]).

    Args:
        corpus: a named corpus, tokenised with the run's tokenizer, or the prefix of data that it made.
    Raises:
        DataError: prepared data of another tokenizer.
    """
    file = open_token_file(config, prepared_prefix(config, corpus, tokenizer_dir), whole=True)
    # The order of older versions leaves out the end of what it reads.
    in_epochs = replace(config, data=replace(config.data, shuffle="epoch"))
    return corpus_samples(in_epochs, file, Split.valid, None), byte_lengths(file.tokenizer)


def byte_lengths(tokenizer: Tokenizer) -> Tensor:
    """UTF-8 bytes that each token id stands for, int64 [V]."""
    return torch.from_numpy(token_byte_lengths(tokenizer).astype(np.int64))


def corpus_samples(config: RunConfig, file: TokenFile, split: Split, samples: int | None) -> CountedSamples:
    """Samples of a part of a token file: for training any number of them, for validation all of the part.

    Args:
        samples: number of training samples that will be asked for (None: one epoch); only the order of older versions
            (data.shuffle run) depends on it.
    Raises:
        ConfigError: too few tokens: less than one training window, or no label for a validation.
    """
    recipe = recipe_of(config.model, config.data, file.tokenizer)
    tokens, whole = file.parts[split].tokens, split is Split.train or config.data.shuffle == "run"
    if tokens < (least := recipe.window + recipe.overlap if whole else 2):
        needs = (
            f"at least {least}" if not whole else "seq_length + 1" if recipe.overlap else f"{least} for the objective"
        )
        fits = f"the {split.name} part of the data has {tokens} tokens; a sample needs {needs} of them"
        raise ConfigError("model.seq_length", config.model.seq_length, fits)
    windows: TokenWindows
    if config.data.shuffle == "run":
        windows = RunWindows(config, file, split, samples, recipe)
    else:
        part, index, tail = file.parts[split], file.prepared.index, split is Split.valid
        windows = EpochWindows(index, part, recipe.window, recipe.overlap, config.train.seed, tail=tail)
    found = ObjectiveSamples(windows, recipe, config.train.seed, SPLITS[split])
    start = file.document_start
    return GivenStart(found, start) if start else found


class RunWindows:
    """Windows in the order of older versions: Megatron's GPTDataset, which shuffles all epochs of a run together."""

    def __init__(
        self, config: RunConfig, file: TokenFile, split: Split, samples: int | None, recipe: SampleRecipe
    ) -> None:
        dataset_config = GPTDatasetConfig(
            random_seed=config.train.seed,
            sequence_length=recipe.window,
            blend=([str(file.prefix)], None),
            split="1,0,0",
            # An empty path keeps the index in memory: Megatron's cache would write beside the user's data and load
            # arrays with pickling allowed.
            path_to_cache="",
            tokenizer=file.tokenizer,
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
            add_extra_token_to_sequence=bool(recipe.overlap),
        )
        dataset, documents = IndexedDataset(str(file.prefix), mmap=True), file.parts[split].documents.astype(np.int32)
        self._dataset = GPTDataset(dataset, str(file.prefix), documents, samples, split, dataset_config)
        self._overlap = recipe.overlap

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, number: int) -> np.ndarray:
        sample = self._dataset[number]
        tokens = sample["tokens"].numpy()
        return np.append(tokens, sample["labels"].numpy()[-1:]) if self._overlap else tokens
