"""Cut texts for the training of a tokenizer, whose time grows with the square of the longest word."""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST_WORD = 1024
"""Characters without white space that a tokenizer is trained on in one piece; no token gets so long."""

_LONG_WORD = re.compile(rf"\S{{{LONGEST_WORD},}}")


def pieces(text: str) -> Iterator[str]:
    """A text in pieces that join to it; only words longer than `LONGEST_WORD` are cut."""
    at = 0
    for word in _LONG_WORD.finditer(text):
        for end in range(word.start() + LONGEST_WORD, word.end() + 1, LONGEST_WORD):
            yield text[at:end]
            at = end
    if at < len(text) or not text:
        yield text[at:]
