"""The samples of a run: Megatron's GPTDataset over prepared data. A sample's number alone says what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from torch import Tensor

from altup_moe.config import ConfigError, RunConfig
from altup_moe.data.prepare import Prepared, open_prepared, prepare_named
from altup_moe.data.split import split_documents
from altup_moe.data.tokenizer import Tokenizer, load_tokenizer, token_byte_lengths


@dataclass(frozen=True)
class Samples:
    """The training and validation samples of a run, and what is needed to speak of them.

    ``byte_lengths`` [V]: UTF-8 bytes that each token id stands for; ``fingerprint``: hash of the token files.
    """

    train: GPTDataset
    valid: GPTDataset
    tokenizer: Tokenizer
    tokenizer_dir: Path
    byte_lengths: Tensor
    fingerprint: str

    def valid_count(self, config: RunConfig) -> int:
        """Validation samples that one validation reads."""
        return min(config.train.eval_samples, len(self.valid))


def prepared_prefix(config: RunConfig, corpus: str | None = None) -> Path:
    """Tokenise a named corpus (once; on one rank only) or find the user's data. Returns the path prefix."""
    name = corpus or config.data.corpus
    cache = Path(config.data.cache or Path(config.log.run_dir) / "data")
    return Path(prepare_named(name, config.model.vocab_size, config.data.tokenizer, cache))


def open_samples(config: RunConfig, prefix: Path, *, scan: bool = True) -> Samples:
    """Verify the data at `prefix` and index its samples. Reads only; builds its index in memory.

    Args:
        scan: also read every token once; one rank of a run is enough.

    Raises:
        DataError: a damaged file, or token ids outside model.vocab_size (file and offset).
        ConfigError: too little data for one sample of model.seq_length.
    """
    prepared: Prepared = open_prepared(prefix, config.model.vocab_size, scan=scan)
    tokenizer = load_tokenizer(prepared.tokenizer_dir)
    dataset = IndexedDataset(str(prefix), mmap=True)
    train_documents, valid_documents = split_documents(dataset.sequence_lengths, config.data.valid_fraction)
    steps = config.train.steps * config.train.global_batch_size
    return Samples(
        train=_gpt_dataset(config, dataset, prefix, train_documents, steps, Split.train, tokenizer),
        valid=_gpt_dataset(config, dataset, prefix, valid_documents, None, Split.valid, tokenizer),
        tokenizer=tokenizer,
        tokenizer_dir=prepared.tokenizer_dir,
        byte_lengths=torch.from_numpy(token_byte_lengths(tokenizer).astype(np.int64)),
        fingerprint=prepared.manifest.bin_sha256,
    )


def open_corpus(config: RunConfig, corpus: str, tokenizer_dir: Path) -> tuple[GPTDataset, Tensor]:
    """All of another corpus in a run's own tokens: (samples, bytes of each token id [V]).

    Args:
        corpus: a named corpus, tokenised with the run's tokenizer, or the prefix of data that it made.
    Raises:
        DataError: prepared data of another tokenizer.
    """
    tokenizer = load_tokenizer(tokenizer_dir)
    cache = Path(config.data.cache or Path(config.log.run_dir) / "data")
    prefix = Path(prepare_named(corpus, config.model.vocab_size, str(tokenizer_dir), cache))
    prepared = open_prepared(prefix, config.model.vocab_size)
    dataset = IndexedDataset(str(prefix), mmap=True)
    documents = np.arange(len(prepared.index))
    samples = _gpt_dataset(config, dataset, prefix, documents, None, Split.valid, tokenizer)
    return samples, torch.from_numpy(token_byte_lengths(tokenizer).astype(np.int64))


def _gpt_dataset(
    config: RunConfig,
    dataset: IndexedDataset,
    prefix: Path,
    documents: np.ndarray,
    samples: int | None,
    split: Split,
    tokenizer: Tokenizer,
) -> GPTDataset:
    length = config.model.seq_length
    tokens = int(np.asarray(dataset.sequence_lengths)[documents].sum())
    if tokens <= length:
        fits = f"the {split.name} part of the data has {tokens} tokens; a sample needs seq_length + 1 of them"
        raise ConfigError("model.seq_length", length, fits)
    dataset_config = GPTDatasetConfig(
        random_seed=config.train.seed,
        sequence_length=length,
        blend=([str(prefix)], None),
        split="1,0,0",
        # An empty path keeps the index in memory: Megatron's cache would write beside the user's data and load
        # arrays with pickling allowed.
        path_to_cache="",
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return GPTDataset(dataset, str(prefix), documents.astype(np.int32), samples, split, dataset_config)
