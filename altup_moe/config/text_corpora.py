"""Text where tokens are expected: the command line that makes tokens of it, or text of a table."""

from __future__ import annotations

import shlex
from pathlib import Path

from altup_moe.config.schema import RunConfig

_TABLES = {".csv": "", ".tsv": ",delimiter=chr(9)"}
"""Suffix of a table -> argument of Python's csv.DictReader."""
_TEXT = (".txt", ".text", ".md", ".jsonl", ".ndjson", ".json", ".parquet", ".gz", ".bz2", ".xz", ".zst")
"""Suffixes that the names of prepared data lose (of `altup_moe.data.text_files`, which this layer cannot import)."""


def table_hint(file: Path) -> str:
    """The command that writes a table's rows as JSON lines, after a semicolon; "" for other files."""
    if file.suffix.lower() not in _TABLES:
        return ""
    script = (
        "import csv,json,sys;csv.field_size_limit(2**31-1);"
        f"[print(json.dumps(row)) for row in csv.DictReader(sys.stdin{_TABLES[file.suffix.lower()]})]"
    )
    source, lines = shlex.quote(str(file)), shlex.quote(str(file.with_suffix(".jsonl")))
    how = "write its rows as JSON lines, whose column of text --text-key names"
    return f"; {how}: python3 -c '{script}' < {source} > {lines}"


def prepare_hint(corpus: str, config: RunConfig) -> str:
    """What makes text readable for a run: its preparation with the run's tokenizer, and the flag; "" for no text."""
    path = Path(corpus)
    if not corpus:
        return ""
    if not path.exists() or path.suffix.lower() in _TABLES:
        return table_hint(path) if path.exists() else ""
    if path.is_file() and path.suffix.lower() not in _TEXT:
        return ""
    prefix = path
    while prefix.suffix.lower() in _TEXT:
        prefix = prefix.with_suffix("")
    if prefix == path:
        # Of `.`, `..` and `/` pathlib has no name to replace.
        prefix = path.parent / f"{path.resolve().name or 'corpus'}_tokens"
    words = ["altup-moe", "prepare-data", corpus, str(prefix), *_tokenizer(config)]
    return f"; type {shlex.join(words)} and then --data.corpus {shlex.quote(str(prefix))}"


def _tokenizer(config: RunConfig) -> list[str]:
    data, model = config.data, config.model
    if data.tokenizer is not None:
        return ["--tokenizer", data.tokenizer, *["--add-special-tokens"] * data.add_special_tokens]
    objective = data.objective or model.architecture.objectives[0]
    sentinels = model.encoder_decoder or objective == "span_corruption"
    return ["--vocab-size", str(model.vocab_size), *(["--sentinels", str(data.sentinels)] if sentinels else [])]
