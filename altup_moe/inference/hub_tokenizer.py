"""The tokenizer of a conversion: taken as transformers loads it, given so that transformers builds our inputs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import tokenizers
from transformers import AutoTokenizer

from altup_moe.config import DataError, RunConfig
from altup_moe.config.files import write_text
from altup_moe.config.run_directory import GENERATION
from altup_moe.data.special_tokens import prompt_format
from altup_moe.data.template import with_template
from altup_moe.data.tokenizer import SETTINGS, Tokenizer, load_tokenizer, parse_tokenizer
from altup_moe.inference.load_run import special_ids

_BY_CLASS = ("truncation", "padding", "post_processor")
"""Parts of a tokenizer.json that are compared otherwise, or not at all."""


def imported_tokenizer(source: Path, vocab_size: int) -> tuple[Tokenizer, list[str]]:
    """The tokenizer of a Hugging Face directory, and what there is to say.

    transformers builds some classes (LlamaTokenizer, T5Tokenizer, ...) anew from the vocabulary; where the result is
    not what tokenizer.json says, the result counts, since the model is used with it.

    Raises:
        DataError: none there, an unreadable one, or ids beyond the model's vocabulary.
    """
    tokenizer = load_tokenizer(source, add_special_tokens=True)
    if tokenizer.vocab_size > vocab_size:
        problem = f"has ids up to {tokenizer.vocab_size - 1}, config.json a vocab_size of {vocab_size}"
        raise DataError(source / "tokenizer.json", problem)
    said = []
    try:
        loaded = AutoTokenizer.from_pretrained(str(source), local_files_only=True, trust_remote_code=False)
        theirs = parse_tokenizer(source, loaded.backend_tokenizer.to_str().encode(), add_special_tokens=True)
    except Exception as error:  # transformers raises many kinds
        first = " ".join(str(error).split())[:120]
        said.append(f"tokenizer: tokenizer.json alone, since transformers does not load its class ({first})")
    else:
        if theirs.template != tokenizer.template or _content(theirs.serialized) != _content(tokenizer.serialized):
            if theirs.vocab_size <= vocab_size:
                tokenizer = theirs
                said.append(
                    f"tokenizer: as transformers' {type(loaded).__name__} builds it, not as tokenizer.json says"
                )
            else:
                said.append(
                    f"tokenizer: as tokenizer.json says; transformers' {type(loaded).__name__} has ids up to "
                    f"{theirs.vocab_size - 1}, beyond the model's {vocab_size}"
                )
    return tokenizer, [
        *said,
        f"before a text stands {names(tokenizer, tokenizer.template.before)}, behind it "
        f"{names(tokenizer, tokenizer.template.after)}, as its tokenizer says",
    ]


def names(tokenizer: Tokenizer, ids: tuple[int, ...]) -> str:
    """Tokens as they are spelled, for a message."""
    return " ".join(str(tokenizer.backend.id_to_token(i)) for i in ids) or "nothing"


def export_tokenizer(directory: Path, out: Path, config: RunConfig) -> tuple[dict[str, Any], list[str]]:
    """Write a run's tokenizer so that transformers builds the inputs that the run was trained on.

    Returns:
        Ids of special tokens, and what there is to say.
    """
    if not directory.is_dir():
        return {}, [f"without a tokenizer: {directory} is not there"]
    for file in sorted(directory.iterdir()):
        if file.is_file() and file.name != GENERATION:
            shutil.copyfile(file, out / file.name)
    tokenizer = load_tokenizer(directory, config.data.add_special_tokens)
    special = special_ids(config, tokenizer)
    template = prompt_format(config.model, config.data, tokenizer).template
    if tokenizer.template != template:
        tokens = {i: tokenizer.backend.id_to_token(i) for i in (*template.before, *template.after)}
        (out / "tokenizer.json").write_bytes(with_template(tokenizer.serialized, template, tokens))
    if tokenizer.template != template or not config.data.add_special_tokens:
        write_json(out / SETTINGS, _settings(tokenizer, config, special["pad_token_id"]))
    write_json(out / GENERATION, dict(tokenizer.generation) | special)
    return special, []


def _settings(tokenizer: Tokenizer, config: RunConfig, pad: int) -> dict[str, Any]:
    """tokenizer_config.json of our own tokenizer: read as tokenizer.json alone says, padded as its model wants it."""
    kept = {name: value for name, value in tokenizer.settings.items() if name not in ("add_bos_token", "add_eos_token")}
    if config.data.add_special_tokens:
        return kept
    encoder_decoder = config.model.encoder_decoder
    if encoder_decoder:
        kept.pop("bos_token", None)  # nothing begins with one
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    kept["pad_token"] = tokenizer.backend.id_to_token(pad)
    kept["padding_side"] = "right" if encoder_decoder else "left"
    return kept


def _content(serialized: bytes) -> dict[str, Any]:
    """What a tokenizer.json says of spelling, defaults included."""
    content = json.loads(tokenizers.Tokenizer.from_buffer(serialized).to_str())
    return {name: value for name, value in content.items() if name not in _BY_CLASS}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write an object as a JSON file."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
