"""MediaWiki dumps to plain text: enough clean-up to train on, not a renderer."""

from __future__ import annotations

import bz2
import html
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from altup_moe.config.errors import DataError
from altup_moe.data.document import Document

CLEANING_VERSION = 1  # part of the cache key: raise it when `clean` changes

_COMMENT = re.compile(r"<!--.*?-->", re.S)
_DROPPED = re.compile(r"<(ref|math|gallery|timeline|imagemap|score|chem)\b[^<>]*?(?:/>|>.*?</\1\s*>)", re.S | re.I)
_TEMPLATE = re.compile(r"\{\{|\}\}(?!\}(?!\}))")  # of three closing braces, the last two
_TABLE = re.compile(r"^\s*\{\||^\s*\|\}", re.M)
_TAG = re.compile(r"</?[a-zA-Z][^<>\n]*>")
_EXTERNAL = re.compile(r"\[(?:https?:|ftp:)?//[^\s\]]+ *([^\[\]]*)\]")
_LINK = re.compile(r"\[\[([^\[\]]*)\]\]")
_HIDDEN_LINK = re.compile(r"\s*(?:file|image|media|category|[a-z]{2,3}(?:-[a-z]+)?)\s*:", re.I)
_QUOTES = re.compile(r"'{2,5}")
_HEADING = re.compile(r"^(=+)\s*(.*?)\s*\1\s*$", re.M)
_SWITCH = re.compile(r"__[A-Z]+__")
_BLANKS = re.compile(r"[ \t]+$|^[ \t]*[*#:;|]+[ \t]*$", re.M)
_GAPS = re.compile(r"\n{3,}")


def clean(wikitext: str) -> str:
    """Plain text of a page: no comments, references, templates, tables, files, categories or markup."""
    text = _DROPPED.sub("", _COMMENT.sub("", wikitext))
    text = _without_blocks(text, _TEMPLATE, "{{")
    text = _without_blocks(text, _TABLE, "{|")
    text = _EXTERNAL.sub(r"\1", text)
    while True:  # innermost first: a file's caption has links of its own
        text, changed = _LINK.subn(_link_text, text)
        if not changed:
            break
    text = _TAG.sub("", _QUOTES.sub("", text))
    text = html.unescape(_SWITCH.sub("", _HEADING.sub(r"\2", text))).replace("\u00a0", " ")
    return _GAPS.sub("\n\n", _BLANKS.sub("", text)).strip()


def articles(dump: bytes, source: str, file: Path) -> Iterator[Document]:
    """Articles of a bz2 MediaWiki XML dump, in its order: main namespace, no redirects; the title opens the text.

    Only for dumps whose hash was checked: the standard library's XML parser trusts its input.

    Raises:
        DataError: ``file`` is not bzip2, not XML, or has no articles.
    """
    try:
        xml = bz2.decompress(dump)
    except (OSError, ValueError) as error:
        raise DataError(file, f"not a bzip2 file: {error}") from error
    found = False
    try:
        for _, page in ElementTree.iterparse(io.BytesIO(xml)):
            if page.tag.rpartition("}")[2] != "page":
                continue
            parts = {part.tag.rpartition("}")[2]: part.text or "" for part in page.iter()}
            page.clear()
            if parts.get("ns") != "0" or "redirect" in parts or not (body := clean(parts.get("text", ""))):
                continue
            found = True
            yield Document(f"{source}:{parts.get('title', '')}", f"{parts.get('title', '')}\n\n{body}\n")
    except ElementTree.ParseError as error:
        raise DataError(file, f"not MediaWiki XML once decompressed: {error}") from error
    if not found:
        raise DataError(file, "no articles in the dump")


def _without_blocks(text: str, mark: re.Pattern[str], opening: str) -> str:
    """Drop balanced blocks, nested ones with their parents; an unbalanced mark stays as it is."""
    starts: list[int] = []
    spans: list[tuple[int, int]] = []
    for match in mark.finditer(text):
        if match.group().strip() == opening:
            starts.append(match.start())
        elif starts:
            begin = starts.pop()
            while spans and spans[-1][0] >= begin:
                spans.pop()
            spans.append((begin, match.end()))
    kept, at = [], 0
    for begin, end in spans:
        kept.append(text[at:begin])
        at = end
    return "".join([*kept, text[at:]])


def _link_text(match: re.Match[str]) -> str:
    target, _, label = match.group(1).partition("|")
    if _HIDDEN_LINK.match(target):
        return ""
    return label.rpartition("|")[2] or target
