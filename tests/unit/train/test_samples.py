"""Samples: a number alone says what they hold; every token of an epoch is used; nothing is written beside the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

from altup_moe.config import ConfigError, DataError
from altup_moe.data.document import Document
from altup_moe.data.prepare import open_prepared, prepare_tokens
from altup_moe.data.split import split_documents, whole_documents
from altup_moe.data.tokenizer import Tokenizer, load_tokenizer, token_byte_lengths, train_bpe
from altup_moe.data.windows import EpochWindows
from altup_moe.train.samples import GivenStart, open_corpus, open_samples, prepared_prefix
from tests.unit.inference.alike import sentencepiece_like
from tests.unit.train.runs import TEXT, tiny

LENGTH = tiny().model.seq_length


def test_samples_are_slices_of_the_documents(bpe: Tokenizer, prefix: Path) -> None:
    data = open_samples(tiny(), prefix)
    assert len(data.train) > 0
    assert data.tokenizer.sha256 == bpe.sha256
    assert data.fingerprint == open_prepared(prefix, 300).manifest.bin_sha256
    assert data.byte_lengths.tolist() == token_byte_lengths(bpe).tolist()
    for sample in (data.train[0], data.train[len(data.train)], data.valid[0]):
        assert sample["tokens"].shape == sample["labels"].shape == sample["loss_mask"].shape == (LENGTH,)
        assert torch.equal(sample["tokens"][1:], sample["labels"][:-1])
        assert set(sample["loss_mask"].tolist()) == {1.0}


def test_training_and_validation_share_no_document(prefix: Path) -> None:
    """Every document begins with its number."""
    config = tiny(data={"valid_fraction": 0.3})
    data, index = open_samples(config, prefix), open_prepared(prefix, 300).index
    lengths = [len(index.document(n)) for n in range(len(index))]
    parts = split_documents(lengths, 0.3)

    def seen(dataset) -> str:
        return data.tokenizer.decode(torch.cat([dataset[n]["tokens"] for n in range(len(dataset))]).tolist())

    for mine, other, dataset in ((0, 1, data.train), (1, 0, data.valid)):
        text = seen(dataset)
        assert any(f"{n} the cat" in text for n in parts[mine])
        assert not any(f".\n{n} the cat" in text for n in parts[other])


def test_a_sample_depends_on_seed_and_number_alone(prefix: Path) -> None:
    def first(**train: int) -> list[list[int]]:
        dataset = open_samples(tiny(train=train), prefix, scan=False).train
        return [dataset[n]["tokens"].tolist() for n in range(8)]

    assert first() == first() == first(micro_batch_size=1)
    assert first(seed=1) != first(seed=2)


def test_the_number_of_steps_changes_no_sample(prefix: Path) -> None:
    """Not even beyond one epoch; the order of older versions does change."""

    def read(steps: int, shuffle: str) -> list[list[int]]:
        dataset = open_samples(tiny(train={"steps": steps}, data={"shuffle": shuffle}), prefix, scan=False).train
        return [dataset[n]["tokens"].tolist() for n in range(12)]

    assert len(open_samples(tiny(), prefix, scan=False).train) < 4000  # several epochs
    assert read(3, "epoch") == read(1000, "epoch")
    assert read(3, "run") != read(1000, "run")


def megatrons(prefix: Path, documents: np.ndarray, samples: int | None, seed: int, overlap: int) -> GPTDataset:
    """Megatron's dataset of these documents; None is one epoch."""
    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=LENGTH,
        blend=([str(prefix)], None),
        split="1,0,0",
        path_to_cache="",
        tokenizer=open_samples(tiny(), prefix).tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        add_extra_token_to_sequence=bool(overlap),
    )
    tokens = IndexedDataset(str(prefix))
    return GPTDataset(tokens, str(prefix), documents.astype(np.int32), samples, Split.train, config)


@pytest.mark.parametrize("seed", [1, 1234])
@pytest.mark.parametrize("overlap", [0, 1])
def test_one_epoch_is_megatrons(seed: int, overlap: int, prefix: Path) -> None:
    """Windows of the first epoch are those of GPTDataset for one epoch, in its order."""
    index = open_prepared(prefix, 300).index
    documents = np.arange(0, len(index), 2)
    theirs = megatrons(prefix, documents, None, seed, overlap)
    ours = EpochWindows(index, whole_documents(index.lengths, documents), LENGTH, overlap, seed)
    assert len(ours) == len(theirs) > 5
    for number in range(len(theirs)):
        assert ours[number][:LENGTH].tolist() == theirs[number]["tokens"].tolist()
        if overlap:
            assert ours[number][1:].tolist() == theirs[number]["labels"].tolist()


def test_the_order_of_older_versions_is_megatrons_for_the_run(prefix: Path) -> None:
    """Over several epochs, and the same documents held out."""
    config, index = tiny(train={"steps": 100}, data={"shuffle": "run"}), open_prepared(prefix, 300).index
    train, valid = split_documents(index.lengths, config.data.valid_fraction)
    data, seed = open_samples(config, prefix), config.train.seed
    for documents, ours, samples in ((train, data.train, 400), (valid, data.valid, None)):
        theirs = megatrons(prefix, documents, samples, seed, 1)
        assert len(ours) == len(theirs) >= (samples or 1)
        for number in range(len(theirs)):
            for name in ("tokens", "labels", "loss_mask"):
                assert ours[number][name].tolist() == theirs[number][name].tolist()


def test_one_document_is_split_within(bpe: Tokenizer, tmp_path: Path) -> None:
    prefix = tmp_path / "tokens"
    prepare_tokens([Document("input.txt", TEXT * 10)], bpe, prefix, "mine")
    data, tokens = open_samples(tiny(), prefix), open_prepared(prefix, 300).index.document(0)
    held = int(0.05 * len(tokens))
    assert data.notes[0].startswith(f"the last {held} of {len(tokens):,} tokens (5.0%) are held out")
    labels = [
        sample["labels"][sample["loss_mask"].bool()] for sample in (data.valid[n] for n in range(len(data.valid)))
    ]
    assert sorted(torch.cat(labels).tolist()) == sorted(tokens[-held + 1 :].tolist())
    with pytest.raises(ConfigError, match="at least 2 documents"):
        open_samples(tiny(data={"shuffle": "run"}), prefix)  # as older versions


def test_nothing_is_written_beside_the_data(prefix: Path) -> None:
    before = sorted(prefix.parent.rglob("*"))
    open_samples(tiny(), prefix)
    assert sorted(prefix.parent.rglob("*")) == before


def test_no_validation_reads_more_than_there_is(prefix: Path) -> None:
    data = open_samples(tiny(), prefix)
    assert data.valid_count(tiny(train={"eval_samples": 1})) == 1
    assert data.valid_count(tiny(train={"eval_samples": 10**6})) == len(data.valid)


def test_too_little_text_for_one_sample_is_refused(prefix: Path) -> None:
    with pytest.raises(ConfigError, match=r"part of the data has \d+ tokens") as error:
        open_samples(tiny(model={"seq_length": 4096}), prefix)
    assert error.value.key == "model.seq_length"


def test_a_corpus_shorter_than_a_sample_is_evaluated(bpe: Tokenizer, tmp_path: Path) -> None:
    for name, text in (("short", "ab"), ("none", "")):
        prepare_tokens([Document(name, text)], bpe, tmp_path / name, "mine")
    samples, _ = open_corpus(tiny(), str(tmp_path / "short"), bpe.directory)
    ids = open_prepared(tmp_path / "short", 300).index.document(0)
    assert len(samples) == 1
    assert samples[0]["labels"][samples[0]["loss_mask"].bool()].tolist() == ids[1:].tolist()
    with pytest.raises(ConfigError, match="valid part of the data has 1 tokens; a sample needs at least 2"):
        open_corpus(tiny(), str(tmp_path / "none"), bpe.directory)


def test_a_vocabulary_that_is_too_small_is_refused(prefix: Path) -> None:
    with pytest.raises(ConfigError) as error:
        open_samples(tiny(model={"vocab_size": 260}), prefix)
    assert error.value.key == "model.vocab_size"


def test_damage_is_found_by_the_scanning_rank(bpe: Tokenizer, tmp_path: Path) -> None:
    prepare_tokens([Document(str(n), TEXT) for n in range(8)], bpe, tmp_path / "tokens", "mine")
    content = bytearray((tmp_path / "tokens.bin").read_bytes())
    content[10] ^= 1
    (tmp_path / "tokens.bin").write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"tokens\.bin"):
        open_samples(tiny(), tmp_path / "tokens")


def test_a_prefix_is_taken_as_it_is(prefix: Path, tmp_path: Path) -> None:
    config = tiny(data={"corpus": str(prefix)}, log={"run_dir": str(tmp_path / "run")})
    assert prepared_prefix(config) == prefix
    assert not (tmp_path / "run").exists()


def test_another_corpus_is_read_whole_and_with_the_same_tokenizer(bpe: Tokenizer, prefix: Path, tmp_path: Path) -> None:
    samples, lengths = open_corpus(tiny(), str(prefix), bpe.directory)
    index = open_prepared(prefix, 300).index
    counted = [samples[n]["labels"][samples[n]["loss_mask"].bool()] for n in range(len(samples))]
    first = index.document(int(np.random.RandomState(tiny().train.seed).permutation(len(index))[0]))[0]
    every = np.concatenate([index.document(n) for n in range(len(index))]).tolist()
    assert sorted([*torch.cat(counted).tolist(), int(first)]) == sorted(every)
    assert {len(samples[n]["tokens"]) for n in range(len(samples))} == {LENGTH}
    assert lengths.tolist() == token_byte_lengths(bpe).tolist()
    other = train_bpe([TEXT], 290, tmp_path / "other")
    with pytest.raises(DataError, match="not the tokenizer that made"):
        open_corpus(tiny(), str(prefix), other.directory)


def test_what_begins_a_document_is_given_and_never_a_label_that_counts(tmp_path: Path) -> None:
    sentencepiece_like(tmp_path / "llama", "PreTrainedTokenizerFast")
    documents = [Document(str(n), f"the cat saw {n} <s> dogs") for n in range(40)]
    tokenizer = load_tokenizer(tmp_path / "llama", add_special_tokens=True)
    prepare_tokens(documents, tokenizer, tmp_path / "with", "mine")
    prepare_tokens(documents, load_tokenizer(tmp_path / "llama"), tmp_path / "without", "mine")
    config = tiny(model={"vocab_size": 512}, data={"add_special_tokens": True})
    for objective in (None, "prefix"):
        dataset = open_samples(replace(config, data=replace(config.data, objective=objective)), tmp_path / "with").train
        rows = [dataset[n] for n in range(len(dataset))]
        starts = torch.stack([row["labels"] for row in rows]) == 1
        assert starts.sum() > 10
        assert torch.stack([row["loss_mask"] for row in rows])[starts].sum() == 0
        assert torch.stack([row["loss_mask"] for row in rows])[~starts].sum() > 100
    # Data without them is read as it is.
    assert not isinstance(open_samples(config, tmp_path / "without").train, GivenStart)


def test_named_corpora_are_kept_apart(tmp_path: Path) -> None:
    """With and without what begins a document: other files, under another name."""
    sentencepiece_like(tmp_path / "llama", "PreTrainedTokenizerFast")
    settings = {"corpus": "python-docs", "tokenizer": str(tmp_path / "llama"), "cache": str(tmp_path / "cache")}
    found = []
    for chosen in (False, True):
        config = tiny(model={"vocab_size": 512}, data={**settings, "add_special_tokens": chosen})
        found.append(open_prepared(prepared_prefix(config), 512).index.document(0).tolist())
    assert found[1] == [1, *found[0]]
