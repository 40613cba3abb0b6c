"""Tokenizers of other kinds than ours, as directories."""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers


def metaspace(directory: Path, text: str, *, byte_fallback: bool) -> Path:
    """A sentencepiece-like BPE; without byte fallback it has an unknown token."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=byte_fallback))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator([text], trainers.BpeTrainer(vocab_size=300, special_tokens=pieces, show_progress=False))
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < 2]
    return _directory(directory, tokenizers.Tokenizer.from_str(json.dumps(spec)), "</s>")


def word_level(directory: Path, text: str) -> Path:
    """Whole words: its tokens do not say which white space they replace."""
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.train_from_iterator([text], trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"]))
    return _directory(directory, backend, "</s>")


def forgetful(directory: Path, letter: str) -> Path:
    """Byte-level, but its normaliser deletes a letter."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.Replace(letter, "")
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=257, special_tokens=["</s>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(["a"], trainer)
    return _directory(directory, backend, "</s>")


def _directory(directory: Path, backend: tokenizers.Tokenizer, end: str) -> Path:
    directory.mkdir(parents=True)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": end}}))
    return directory
