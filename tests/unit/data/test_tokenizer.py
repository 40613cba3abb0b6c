"""Tokenizers: byte-exact, deterministic, readable by transformers, and every token's bytes counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from altup_moe.config import ConfigError, DataError
from altup_moe.data.corpora import python_docs
from altup_moe.data.tokenizer import Tokenizer, load_tokenizer, save_tokenizer, token_byte_lengths, train_bpe
from tests.unit.data.tokenizers_for_tests import metaspace, word_level

TEXTS = [document.text for document in python_docs()[:20]]
ODD = "naïve  café\r\n\t日本語 🙂 \x00 e\u0301 ﬁ <|endoftext|> end\n\n"


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_bpe(TEXTS, 600, tmp_path_factory.mktemp("bpe"))


def test_every_text_comes_back_exactly(bpe: Tokenizer) -> None:
    assert bpe.vocab_size == 600
    assert bpe.eod == 0
    for text in [ODD, "", " ", *TEXTS[:3]]:
        assert bpe.decode(bpe.encode(text)) == text
    assert bpe.eod not in bpe.encode(ODD)  # a text cannot end its document by spelling the token
    assert bpe.encode_batch(TEXTS) == [bpe.encode(text) for text in TEXTS]


def test_training_is_deterministic(bpe: Tokenizer, tmp_path: Path) -> None:
    again = train_bpe(iter(TEXTS), 600, tmp_path / "again")
    assert again.serialized == bpe.serialized
    assert again.sha256 == bpe.sha256 == again.unique_identifiers["sha256"]
    assert train_bpe(TEXTS, 500, tmp_path / "other").sha256 != bpe.sha256


def test_transformers_loads_it_and_agrees(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(bpe.directory))
    assert theirs.eos_token_id == theirs.bos_token_id == bpe.eod
    assert len(theirs) == bpe.vocab_size
    for text in [ODD.replace("<|endoftext|>", ""), *TEXTS]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == bpe.encode(text)


def test_byte_lengths_add_up_to_the_texts(bpe: Tokenizer) -> None:
    lengths = token_byte_lengths(bpe)
    assert lengths.shape == (bpe.vocab_size,)
    assert lengths[bpe.eod] == 0
    for text in [ODD, *TEXTS]:
        assert lengths[bpe.encode(text)].sum() == len(text.encode())


def test_byte_lengths_of_sentencepiece_like_tokens(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(metaspace(tmp_path / "m", "the cat sat on the mat", byte_fallback=True))
    text = "the café sat 日本"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert token_byte_lengths(tokenizer)[ids].sum() == len(text.encode()) + 1  # the space put before every text
    assert token_byte_lengths(tokenizer)[tokenizer.eod] == 0


def test_uncountable_tokens_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json: neither byte-level nor metaspace"):
        token_byte_lengths(load_tokenizer(word_level(tmp_path / "w", "a b c")))


def test_a_directory_without_tokenizer_json(bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bpe.backend.model.save(str(tmp_path))
    settings = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    converted = load_tokenizer(tmp_path)
    assert converted.eod == bpe.eod
    assert converted.encode(TEXTS[0]) == bpe.encode(TEXTS[0])
    save_tokenizer(converted, tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").is_file()
    assert load_tokenizer(tmp_path / "copy").sha256 == converted.sha256


def test_bad_tokenizers_are_named(bpe: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocab_size=256"):
        train_bpe(TEXTS, 256, tmp_path / "a")
    with pytest.raises(DataError, match="no text"):
        train_bpe([], 300, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(DataError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "missing")
    save_tokenizer(bpe, tmp_path / "b")
    (tmp_path / "b" / "tokenizer_config.json").write_text('{"eos_token": "<nope>"}')
    with pytest.raises(DataError, match="'<nope>' is not in the vocabulary"):
        load_tokenizer(tmp_path / "b")
    (tmp_path / "b" / "tokenizer_config.json").write_text("{,")
    with pytest.raises(DataError, match=r"tokenizer_config\.json at byte 1: not JSON"):
        load_tokenizer(tmp_path / "b")
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
        load_tokenizer(tmp_path / "b")
