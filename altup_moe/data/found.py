"""The data that a run would train on, as it lies on the disk now: nothing is tokenised, downloaded or written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from altup_moe.config import DataError, RunConfig
from altup_moe.config.data_checks import TASK_NAMES, mixture_entries, task_directories
from altup_moe.data.corpora import CORPORA
from altup_moe.data.named_tokenizers import TOKENIZERS
from altup_moe.data.packages import fetched
from altup_moe.data.prepare import (
    Prepared,
    check_tokenizer,
    data_cache,
    named_prefix,
    open_prepared,
    prepared_tokenizer_dir,
)
from altup_moe.data.recipes import recipe_of, wants_sentinels
from altup_moe.data.split import split_documents, split_summary, split_text
from altup_moe.data.tasks.records import Hub
from altup_moe.data.tasks.registry import TASKS
from altup_moe.data.tokenizer import Tokenizer, load_tokenizer
from altup_moe.data.windows import EpochWindows


@dataclass(frozen=True)
class FoundData:
    """A corpus or a task of a run.

    Args:
        name: as in data.corpus or data.mixture. weight: its weight in a mixture, "" for none.
        first: what the run does before its first step, each a verb and its object; empty: nothing.
        prefix: of the token file; None for a task.
        documents, tokens, vocabulary: of the token file; None until it has been prepared.
        held_out: what is held out for validation, in words.
        train_samples: samples of one epoch. valid_samples: samples that are held out. None: not known yet.
        fingerprint: hash of the token file; "" until it has been prepared.
    """

    name: str
    weight: str = ""
    first: tuple[str, ...] = ()
    prefix: str | None = None
    documents: int | None = None
    tokens: int | None = None
    vocabulary: int | None = None
    held_out: str = ""
    train_samples: int | None = None
    valid_samples: int | None = None
    fingerprint: str = ""


@dataclass(frozen=True)
class _Chosen:
    """The tokenizer of a run's corpora; None: a BPE is trained. ``missing``: what has to come before it is there."""

    tokenizer: Tokenizer | None = None
    missing: str = ""


def find_data(config: RunConfig) -> list[FoundData]:
    """What a checked configuration trains on, in its order.

    Raises:
        DataError: prepared data is damaged, or of another tokenizer. ConfigError: it does not fit the model.
    """
    entries = mixture_entries(config.data.mixture)
    if not entries:
        return [_corpus(config, config.data.corpus, _named_tokenizer(config))]
    weights = {name: "" if weight is None else f"{float(weight):g}" for name, weight in entries.items()}
    chosen = _named_tokenizer(config) if config.data.tokenizer else _tokenizer_of_corpus(config)
    return [
        replace(_task(config, name) if name in TASK_NAMES else _corpus(config, name, chosen), weight=weight)
        for name, weight in weights.items()
    ]


def _named_tokenizer(config: RunConfig) -> _Chosen:
    """That of data.tokenizer."""
    chosen, cache = config.data.tokenizer, data_cache(config)
    if chosen is None:
        return _Chosen()
    if chosen in TOKENIZERS and not fetched(TOKENIZERS[chosen], cache):
        return _Chosen(missing=f"downloads the tokenizer {chosen}")
    # Fetched, but still in its archive: the run extracts it.
    directory = cache / next(iter(TOKENIZERS[chosen].files)) if chosen in TOKENIZERS else Path(chosen) / "any"
    if not directory.parent.is_dir():
        return _Chosen(missing=f"extracts the tokenizer {chosen}")
    return _Chosen(load_tokenizer(directory.parent, config.data.add_special_tokens))


def _tokenizer_of_corpus(config: RunConfig) -> _Chosen:
    """Of a mixture without data.tokenizer: that of data.corpus."""
    corpus = _corpus(config, config.data.corpus, _Chosen())
    if corpus.first or corpus.prefix is None:
        return _Chosen(missing=f"prepares data.corpus {corpus.name}, whose tokenizer the mixture has")
    return _Chosen(load_tokenizer(prepared_tokenizer_dir(Path(corpus.prefix)), config.data.add_special_tokens))


def _corpus(config: RunConfig, name: str, chosen: _Chosen) -> FoundData:
    cache, tokenizer = data_cache(config), chosen.tokenizer
    if chosen.missing:
        return FoundData(name, first=(chosen.missing, *(_preparing(config, name) if name in CORPORA else ())))
    if name not in CORPORA:
        if tokenizer is not None:
            check_tokenizer(tokenizer, Path(name))
        return _found(config, name, open_prepared(Path(name), config.model.vocab_size, scan=False))
    sentinels = config.data.sentinels if wants_sentinels(config.model, config.data) else 0
    prefix, key = named_prefix(name, config.model.vocab_size, tokenizer, cache, sentinels)
    try:
        prepared = open_prepared(prefix, config.model.vocab_size, scan=False) if prefix.parent.exists() else None
    except DataError:  # a run prepares it again
        prepared = None
    if prepared is None or prepared.manifest.source_key != key:
        return FoundData(name, first=_preparing(config, name), prefix=str(prefix))
    return _found(config, name, prepared)


def _preparing(config: RunConfig, name: str) -> tuple[str, ...]:
    package = CORPORA[name].package
    download = (f"downloads {package.requirement}",) if package and not fetched(package, data_cache(config)) else ()
    trained = not config.data.tokenizer and not config.data.mixture
    bpe = (f"trains a BPE of {config.model.vocab_size:,} tokens",) if trained else ()
    return (*download, *bpe, "tokenises the corpus")


def _found(config: RunConfig, name: str, prepared: Prepared) -> FoundData:
    """A token file and the samples in it, counted as `train.samples` counts them."""
    manifest, lengths, fraction = prepared.manifest, prepared.index.lengths, config.data.valid_fraction
    found = FoundData(
        name,
        prefix=str(prepared.prefix),
        documents=manifest.documents,
        tokens=manifest.tokens,
        vocabulary=manifest.vocab_size,
        fingerprint=manifest.bin_sha256,
    )
    if config.data.shuffle == "run":  # Megatron's windows, over all epochs of the run together
        return replace(found, held_out=split_summary(lengths, split_documents(lengths, fraction)[1]))
    recipe = recipe_of(config.model, config.data, load_tokenizer(prepared.tokenizer_dir))
    split, seed = split_text(lengths, fraction), config.train.seed
    train = EpochWindows(prepared.index, split.train, recipe.window, recipe.overlap, seed)
    valid = EpochWindows(prepared.index, split.valid, recipe.window, recipe.overlap, seed, tail=True)
    return replace(found, held_out=split.summary, train_samples=len(train), valid_samples=len(valid))


def _task(config: RunConfig, name: str) -> FoundData:
    local, source = task_directories(config.data.task_files), TASKS[name].source
    if name in local:
        return FoundData(name, first=(f"reads {local[name]}",))
    origin = f"the hub's {source.path} {source.name or ''}".strip() if isinstance(source, Hub) else "a pinned package"
    return FoundData(name, first=(f"reads {origin}, which is downloaded at first use",))
