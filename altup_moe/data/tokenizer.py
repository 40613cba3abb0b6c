"""Tokenizers: train a byte-level BPE, load any Hugging Face tokenizer directory, count the bytes of its tokens."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from altup_moe.config.errors import ConfigError, DataError
from altup_moe.config.run_directory import GENERATION
from altup_moe.data.pieces import pieces
from altup_moe.data.template import Template, template_of

END_OF_TEXT = "<|endoftext|>"
PAD = "<pad>"
MIN_BPE_VOCAB = 257  # 256 bytes and the end-of-document token
SETTINGS = "tokenizer_config.json"
_COMPANIONS = (
    *(SETTINGS, "special_tokens_map.json", "chat_template.jinja", GENERATION),
    *("vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json"),  # what tokenizers without a json read
)
_CLOSED_UP = (
    *((" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'")),
    *((f" {end}", end) for end in ("n't", "'m", "'s", "'ve", "'re")),
)
"""Replacements of transformers' `clean_up_tokenization`, in its order."""
_USUAL_ENDS = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "<|eot_id|>")


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids and back, without special tokens added (`data.special_tokens` says where which are). Special
    strings inside a text are plain text, but in prompts.

    Args:
        directory: where it was loaded from.
        backend: the `tokenizers.Tokenizer` that does the work.
        vocab_size: largest id + 1.
        eod: id that ends every document.
        serialized: the bytes of tokenizer.json.
        add_special_tokens: whether texts have the tokens around them that the tokenizer itself adds.
        settings: content of tokenizer_config.json. generation: content of generation_config.json.
    """

    directory: Path
    backend: Any = field(repr=False)
    vocab_size: int
    eod: int
    serialized: bytes = field(repr=False)
    add_special_tokens: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    generation: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sha256(self) -> str:
        """Hex sha256 of tokenizer.json: the tokenizer's identity."""
        return hashlib.sha256(self.serialized).hexdigest()

    @property
    def pad_id(self) -> int:
        """Id of padding: the token ``<pad>``, or the end token where there is none."""
        # Not called `pad`: GPTDataset would take that for a sign that text holds padding.
        found = self.backend.token_to_id(PAD)
        return self.eod if found is None else int(found)

    @property
    def start_id(self) -> int:
        """Id that a decoder's outputs begin with: what generation_config.json says, or padding, as in T5."""
        given = self.generation.get("decoder_start_token_id")
        return given if isinstance(given, int) else self.pad_id

    @cached_property
    def template(self) -> Template:
        """What the tokenizer itself puts around a text."""
        return template_of(self.backend)

    @property
    def document_start(self) -> tuple[int, ...]:
        """Ids that every document begins with."""
        return self.template.before if self.add_special_tokens else ()

    @property
    def sentinel_ids(self) -> list[int]:
        """Ids of ``<extra_id_0>``, ``<extra_id_1>``, ... as far as they go."""
        ids = (self.backend.token_to_id(sentinel(n)) for n in itertools.count())
        return list(itertools.takewhile(lambda found: found is not None, ids))

    @property
    def unique_identifiers(self) -> OrderedDict[str, str]:
        """What Megatron's GPTDataset hashes into the name of its index cache."""
        return OrderedDict(sha256=self.sha256)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_with_places(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text, and for each the first character that it stands for and the one behind its last."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return list(encoding.ids), list(encoding.offsets)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts, in parallel threads."""
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a prompt: special tokens that it spells are tokens, unless the tokenizer splits them
        (``split_special_tokens``)."""
        return list(self._prompt_backend.encode(text, add_special_tokens=False).ids)

    def document(self, ids: Sequence[int]) -> list[int]:
        """A document of a corpus: what begins one, its text's ids, the end token."""
        return [*self.document_start, *ids, self.eod]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids; special tokens are left out."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    def decode_answer(self, ids: Sequence[int]) -> str:
        """Text of generated ids, as transformers shows it: some tokenizers close up spaces before punctuation."""
        text = self.decode(ids)
        if self.settings.get("clean_up_tokenization_spaces") is True and not self._is_bpe:
            for spaced, closed in _CLOSED_UP:
                text = text.replace(spaced, closed)
        return text

    @property
    def _is_bpe(self) -> bool:
        """transformers never closes up what a BPE has spelled, but where it is forced to."""
        forced = self.settings.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
        return type(self.backend.model).__name__ == "BPE" and forced is not True

    @cached_property
    def _prompt_backend(self) -> Any:
        if self.settings.get("split_special_tokens") is True:
            return self.backend
        return _backend(self.directory / "tokenizer.json", self.serialized, plain_text=False)


def sentinel(number: int) -> str:
    """The text of a sentinel token, T5's."""
    return f"<extra_id_{number}>"


def train_bpe(texts: Iterable[str], vocab_size: int, out_dir: str | Path, sentinels: int = 0) -> Tokenizer:
    """Train a byte-level BPE (GPT-2's alphabet; nothing is normalised, so every text comes back exactly).

    The same texts give the same tokenizer.json. Small corpora run out of pairs, so the vocabulary may stay smaller.

    Args:
        texts: the corpus; read once.
        vocab_size: tokens wanted, the 256 bytes and ``<|endoftext|>`` (id 0; eod, bos and eos) included.
        out_dir: becomes a Hugging Face tokenizer directory.
        sentinels: if not 0, ``<pad>`` is id 0, the end token id 1 (as in T5), and the last ids, counted down, are this
            many sentinels.

    Raises:
        ConfigError: ``vocab_size`` below 257 (and below 258 + sentinels, where there are some).
        DataError: there is no text to train on.
    """
    special = [PAD, END_OF_TEXT] if sentinels else [END_OF_TEXT]
    smallest = 256 + len(special) + sentinels
    if vocab_size < smallest:
        extra = f", {PAD} and {sentinels} sentinels" if sentinels else ""
        fits = f"a byte-level BPE needs at least {smallest} (256 bytes and {END_OF_TEXT}{extra})"
        raise ConfigError("vocab_size", vocab_size, fits)
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - sentinels,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_some(texts, Path(out_dir)), trainer)
    backend.add_special_tokens([sentinel(n) for n in reversed(range(sentinels))])
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    _write_config(out, END_OF_TEXT, PAD if sentinels else None)
    return load_tokenizer(out)


def load_tokenizer(directory: str | Path, add_special_tokens: bool = False) -> Tokenizer:
    """Load a Hugging Face tokenizer directory.

    tokenizer.json is read with `tokenizers` alone; only a directory without one is converted by `transformers`.

    Args:
        add_special_tokens: whether texts get the tokens around them that the tokenizer itself adds
            (data.add_special_tokens).

    Raises:
        DataError: no tokenizer there, an unreadable file, or no token that could end a document.
    """
    directory = Path(directory)
    path = directory / "tokenizer.json"
    if not directory.is_dir():
        raise DataError(directory, "no such tokenizer directory")
    return parse_tokenizer(
        directory, path.read_bytes() if path.is_file() else _converted(directory), add_special_tokens
    )


def parse_tokenizer(directory: Path, serialized: bytes, add_special_tokens: bool = False) -> Tokenizer:
    """The tokenizer of a tokenizer.json's bytes, with the settings in a directory. Raises as `load_tokenizer`."""
    path = directory / "tokenizer.json"
    # A text that spells "<|endoftext|>" must not end its document.
    backend = _backend(path, serialized, plain_text=True)
    vocab = backend.get_vocab(with_added_tokens=True)
    if not vocab:
        raise DataError(path, "the vocabulary is empty")
    return Tokenizer(
        directory,
        backend,
        max(vocab.values()) + 1,
        vocab[_end_token(directory, vocab)],
        serialized,
        add_special_tokens,
        _content(directory / SETTINGS),
        _content(directory / GENERATION),
    )


def _backend(path: Path, serialized: bytes, plain_text: bool) -> Any:
    """The `tokenizers.Tokenizer`; ``plain_text``: special strings inside a text are spelled like any other."""
    try:
        backend = tokenizers.Tokenizer.from_buffer(serialized)
    except Exception as error:  # the library raises bare Exception
        raise DataError(path, f"not a tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = plain_text
    return backend


def save_tokenizer(tokenizer: Tokenizer, out_dir: Path) -> None:
    """Write a copy that loads by itself: tokenizer.json byte for byte, and the settings beside it."""
    out_dir.mkdir(parents=True)
    (out_dir / "tokenizer.json").write_bytes(tokenizer.serialized)
    for name in _COMPANIONS:
        if (tokenizer.directory / name).is_file():
            shutil.copyfile(tokenizer.directory / name, out_dir / name)
    if not (out_dir / SETTINGS).is_file():
        _write_config(out_dir, tokenizer.backend.id_to_token(tokenizer.eod))


def token_byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Bytes of UTF-8 that each token id stands for, so that bits per byte are exact for any slice of tokens.

    Byte-level tokens are spelled with one character a byte (GPT-2's alphabet); sentencepiece-like tokens spell a space
    as U+2581 and a lone byte as ``<0x0A>``. Special tokens and unused ids stand for 0 bytes.

    Returns:
        [vocab_size] int32.

    Raises:
        DataError: a kind of tokenizer whose tokens do not say what text they stand for (WordPiece, word level, ...).
    """
    spec = json.loads(tokenizer.serialized)
    kinds = _kinds(spec.get("decoder"))
    lengths = np.zeros(tokenizer.vocab_size, dtype=np.int32)
    if "ByteLevel" in kinds:
        for token, index in tokenizer.backend.get_vocab(with_added_tokens=False).items():
            lengths[index] = len(token)
    elif kinds & {"Metaspace", "ByteFallback"}:
        for token, index in tokenizer.backend.get_vocab(with_added_tokens=False).items():
            lone_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
            lengths[index] = 1 if lone_byte else len(token.replace("\u2581", " ").encode())
    else:
        problem = (
            f"neither byte-level nor metaspace: decoder {sorted(kinds)} does not say which bytes a token stands for"
        )
        raise DataError(tokenizer.directory / "tokenizer.json", problem)
    for added in spec.get("added_tokens", []):  # spelled as they are, whatever the alphabet
        lengths[added["id"]] = 0 if added["special"] else len(added["content"].encode())
    return lengths


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Id that stands for text the tokenizer cannot spell; None if it can spell everything."""
    model = json.loads(tokenizer.serialized)["model"]
    if model.get("unk_id") is not None:  # Unigram
        return int(model["unk_id"])
    unknown = model.get("unk_token")
    return None if unknown is None else tokenizer.backend.token_to_id(unknown)


def _kinds(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    nested = [_kinds(inner) for inner in decoder.get("decoders", [])]
    return {decoder["type"]}.union(*nested)


def _some(texts: Iterable[str], name: Path) -> Iterator[str]:
    empty = True
    for text in texts:
        empty = empty and not text
        yield from pieces(text)
    if empty:
        raise DataError(name, "no text to train a tokenizer on")


def _end_token(directory: Path, vocab: dict[str, int]) -> str:
    for name in (SETTINGS, "special_tokens_map.json"):
        token = _content(directory / name).get("eos_token")
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            if token not in vocab:
                raise DataError(directory / name, f"eos_token {token!r} is not in the vocabulary")
            return str(token)
    for token in _USUAL_ENDS:
        if token in vocab:
            return token
    raise DataError(directory, f"no token can end a document: set eos_token in {SETTINGS}")


def _content(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty for another value, or where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(path, f"not JSON: {error}", getattr(error, "pos", None)) from error
    return content if isinstance(content, dict) else {}


def _write_config(directory: Path, end: str, pad: str | None = None) -> None:
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "clean_up_tokenization_spaces": False,
        **({"pad_token": pad} if pad else {}),
    }
    (directory / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _converted(directory: Path) -> bytes:
    from transformers import AutoTokenizer  # heavy, and rarely needed

    try:
        loaded = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        return str(loaded.backend_tokenizer.to_str()).encode()
    except Exception as error:  # transformers raises many kinds
        first = str(error).strip().splitlines()[:1]
        raise DataError(directory, f"no tokenizer.json, and transformers cannot make one: {first}") from error
