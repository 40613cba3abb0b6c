"""Preparation: complete or absent, found again, and refused when anything does not belong."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from altup_moe.config import ConfigError, DataError
from altup_moe.data.corpora import load_corpus, texts_sha256
from altup_moe.data.document import Document
from altup_moe.data.indexed import write_indexed
from altup_moe.data.manifest import DatasetManifest, read_dataset_manifest
from altup_moe.data.prepare import open_prepared, prepare_named, prepare_tokens, prepared_tokenizer_dir
from altup_moe.data.split import split_documents
from altup_moe.data.tokenizer import Tokenizer, load_tokenizer, token_byte_lengths, train_bpe
from tests.unit.data.tokenizers_for_tests import forgetful, metaspace, word_level

TEXTS = ["the cat sat on the mat\n", "日本語 and <|endoftext|> é", " "]
DOCUMENTS = [Document(f"test:{number}", text) for number, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_bpe(TEXTS, 270, tmp_path_factory.mktemp("bpe"))


def _content(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def test_prepared_data_holds_the_documents(bpe: Tokenizer, tmp_path: Path) -> None:
    manifest = prepare_tokens(DOCUMENTS, bpe, tmp_path / "sub" / "a.b", "mine")
    prepared = open_prepared(tmp_path / "sub" / "a.b", 300)
    assert prepared.manifest == manifest
    assert (manifest.corpus, manifest.documents, manifest.vocab_size) == ("mine", 3, bpe.vocab_size)
    assert manifest.bytes == sum(len(text.encode()) for text in TEXTS)
    ours = load_tokenizer(prepared.tokenizer_dir)
    assert ours.sha256 == bpe.sha256 == manifest.tokenizer_sha256
    lengths = token_byte_lengths(ours)
    for number, text in enumerate(TEXTS):
        ids = prepared.index.document(number)
        assert ids[-1] == ours.eod
        assert ours.decode(ids.tolist()) == text
        assert lengths[ids].sum() == len(text.encode())
    names = sorted(f.name for f in (tmp_path / "sub").iterdir())
    assert names == ["a.b.bin", "a.b.idx", "a.b.json", "a.b.tokenizer"]


def test_many_batches_keep_the_order(bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altup_moe.data.encode.BATCH_DOCUMENTS", 7)
    monkeypatch.setattr("altup_moe.data.encode.BATCH_CHARACTERS", 40)
    texts = [f"{number} {'x' * (number % 11)}" for number in range(100)]
    prepare_tokens((Document("d", text) for text in texts), bpe, tmp_path / "p", "mine")
    index = open_prepared(tmp_path / "p", 300).index
    assert [bpe.decode(index.document(i).tolist()) for i in range(len(index))] == texts


def test_an_existing_prefix_is_kept_unless_asked(bpe: Tokenizer, tmp_path: Path) -> None:
    prepare_tokens(DOCUMENTS, bpe, tmp_path / "p", "mine")
    before = _content(tmp_path)
    with pytest.raises(DataError, match="exists already"):
        prepare_tokens(DOCUMENTS[:1], bpe, tmp_path / "p", "mine")
    assert _content(tmp_path) == before
    prepare_tokens(DOCUMENTS[:1], bpe, tmp_path / "p", "mine", overwrite=True)
    assert open_prepared(tmp_path / "p", 300).manifest.documents == 1


def _failing() -> list[Document]:
    raise RuntimeError("source broke")


@pytest.mark.parametrize(
    ("documents", "error"), [(lambda: [], "no documents"), (_failing, "source broke"), (lambda: [None], "attribute")]
)
def test_failure_leaves_everything_as_it_was(
    bpe: Tokenizer, tmp_path: Path, documents: Callable[[], list[Document]], error: str
) -> None:
    prepare_tokens(DOCUMENTS, bpe, tmp_path / "p", "mine")
    before = _content(tmp_path)

    def stream() -> object:
        yield from DOCUMENTS[:0]
        yield from documents()

    with pytest.raises(Exception, match=error) as caught:
        prepare_tokens(stream(), bpe, tmp_path / "p", "mine", overwrite=True)  # type: ignore[arg-type]
    if isinstance(caught.value, DataError):
        assert caught.value.file == str(tmp_path / "p.bin")
    assert _content(tmp_path) == before


def test_a_tokenizer_without_the_characters_is_named(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(metaspace(tmp_path / "m", "the cat sat on the mat", byte_fallback=False))
    with pytest.raises(DataError, match="has no token for 'é'") as caught:
        prepare_tokens(
            [Document("f.txt", "日 the cat é")], load_tokenizer(_with(tmp_path, "日")), tmp_path / "p", "mine"
        )
    assert caught.value.file == "f.txt"
    assert caught.value.offset == len("日 the cat ".encode())
    assert prepare_tokens([Document("f.txt", "the cat sat")], tokenizer, tmp_path / "p", "mine").documents == 1


def _with(tmp_path: Path, letters: str) -> Path:
    return metaspace(tmp_path / "more", f"the cat sat on the mat {letters}", byte_fallback=False)


def test_a_tokenizer_that_loses_text_is_named(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(forgetful(tmp_path / "f", "e"))
    with pytest.raises(DataError, match="differ by 4 of 13 bytes") as caught:
        prepare_tokens([Document("f.txt", "日e eel eggs")], tokenizer, tmp_path / "p", "mine")
    assert (caught.value.file, caught.value.offset) == ("f.txt", 3)
    with pytest.raises(DataError, match="neither byte-level nor metaspace"):
        prepare_tokens(
            [Document("f.txt", "a b")], load_tokenizer(word_level(tmp_path / "w", "a b")), tmp_path / "p", "mine"
        )
    assert not list(tmp_path.glob("*p.*"))


def test_named_corpora_are_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = prepare_named("python-docs", 2048, None, tmp_path)
    prepared = open_prepared(prefix, 2048)
    documents = load_corpus("python-docs", tmp_path)
    assert prepared.manifest.vocab_size == 2048
    assert prepared.manifest.bytes == sum(len(d.text.encode()) for d in documents)
    decoded = [
        Document("", load_tokenizer(prepared.tokenizer_dir).decode(prepared.index.document(i).tolist()))
        for i in range(len(prepared.index))
    ]
    assert texts_sha256(decoded) == texts_sha256(documents)
    train, valid = split_documents(prepared.index.lengths, 0.05)
    share = prepared.index.lengths[valid].sum() / prepared.index.tokens
    assert 0.04 < share <= 0.05
    assert len(train) + len(valid) == len(documents)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("prepared again")

    before = _content(tmp_path)
    monkeypatch.setattr("altup_moe.data.prepare.prepare_tokens", never)
    assert prepare_named("python-docs", 2048, None, tmp_path) == prefix
    assert _content(tmp_path) == before
    with pytest.raises(AssertionError, match="prepared again"):
        prepare_named("python-docs", 1024, None, tmp_path)
    assert _content(tmp_path) == before


def test_a_damaged_named_corpus_is_prepared_anew(
    bpe: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = prepare_named("python-docs", 300, bpe.directory, tmp_path)
    before = _content(tmp_path)
    raw = bytearray(before[str(prefix.relative_to(tmp_path)) + ".bin"])
    raw[100] ^= 1
    Path(f"{prefix}.bin").write_bytes(raw)
    with caplog.at_level(logging.WARNING):
        assert prepare_named("python-docs", 300, bpe.directory, tmp_path) == prefix
    assert "prepared again" in caplog.text
    assert f"{prefix}.bin" in caplog.text
    assert _content(tmp_path) == before


def test_another_process_may_be_first(bpe: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, done = prepare_tokens, []

    def overtaken(*args: object, **kwargs: object) -> DatasetManifest:
        if not done:
            done.append(True)
            done.append(prepare_named("python-docs", 300, bpe.directory, tmp_path))
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr("altup_moe.data.prepare.prepare_tokens", overtaken)
    assert prepare_named("python-docs", 300, bpe.directory, tmp_path) == done[1]
    assert open_prepared(done[1], 300).manifest.corpus == "python-docs"
    assert len(list(tmp_path.iterdir())) == 1


def test_vocabulary_sizes_are_checked(bpe: Tokenizer, tmp_path: Path) -> None:
    prepare_tokens(DOCUMENTS, bpe, tmp_path / "p", "mine")
    with pytest.raises(ConfigError, match=r"model\.vocab_size=269: .*270"):
        open_prepared(tmp_path / "p", 269)
    with pytest.raises(ConfigError, match=r"model\.vocab_size=269: .*270"):
        prepare_named("python-docs", 269, bpe.directory, tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"model\.vocab_size=200: .*257"):
        prepare_named("python-docs", 200, None, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_foreign_tokenizer_is_named(bpe: Tokenizer, tmp_path: Path) -> None:
    prefix = tmp_path / "p"
    prepare_tokens(DOCUMENTS, bpe, prefix, "mine")
    other = train_bpe(["completely other words"], 265, tmp_path / "other")
    assert prepare_named(str(prefix), 300, bpe.directory, tmp_path) == prefix
    with pytest.raises(DataError, match=r"other.tokenizer\.json: is not the tokenizer that made"):
        prepare_named(str(prefix), 300, other.directory, tmp_path)
    (prepared_tokenizer_dir(prefix) / "tokenizer.json").write_bytes(other.serialized)
    with pytest.raises(DataError, match=r"p\.tokenizer.tokenizer\.json: sha256"):
        open_prepared(prefix, 300)


def test_a_flipped_bit_is_named(bpe: Tokenizer, tmp_path: Path) -> None:
    prepare_tokens(DOCUMENTS, bpe, tmp_path / "p", "mine")
    raw = bytearray((tmp_path / "p.bin").read_bytes())
    raw[0] ^= 1  # still a token of the vocabulary
    (tmp_path / "p.bin").write_bytes(raw)
    with pytest.raises(DataError, match=r"p\.bin: sha256"):
        open_prepared(tmp_path / "p", 300)
    assert open_prepared(tmp_path / "p", 300, scan=False).manifest.documents == 3
    raw[3] = 0x7F
    (tmp_path / "p.bin").write_bytes(raw)
    with pytest.raises(DataError, match=r"p\.bin at byte 2: token id"):
        open_prepared(tmp_path / "p", 300)


def test_an_index_of_other_data_is_named(bpe: Tokenizer, tmp_path: Path) -> None:
    manifest = prepare_tokens(DOCUMENTS, bpe, tmp_path / "p", "mine")
    write_indexed(tmp_path / "q", [np.zeros(manifest.tokens)], 300)  # as long, but one document
    (tmp_path / "q.idx").replace(tmp_path / "p.idx")
    with pytest.raises(DataError, match=r"p\.idx: sha256"):
        open_prepared(tmp_path / "p", 300)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", r"at byte 1: is not JSON"),
        ('{"é": x', r"at byte 7: is not JSON"),
        ("[]", "holds a list"),
        ("{}", "format version None"),
        ('{"format_version": 1}', "missing or unknown bin_sha256"),
    ],
)
def test_bad_manifests_are_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "p.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=rf"p\.json.*{problem}"):
        read_dataset_manifest(tmp_path / "p.json")


def test_manifest_fields_have_types(tmp_path: Path) -> None:
    good = dataclasses.asdict(DatasetManifest("c", "", 1, 1, 1, 1, "", "", ""))
    for key, value in (("tokens", "7"), ("vocab_size", True), ("corpus", None)):
        (tmp_path / "p.json").write_text(json.dumps({**good, key: value}))
        with pytest.raises(DataError, match=f"{key} is"):
            read_dataset_manifest(tmp_path / "p.json")
    with pytest.raises(DataError, match=r"missing\.json: cannot be read .*altup-moe prepare-data"):
        read_dataset_manifest(tmp_path / "missing.json")
