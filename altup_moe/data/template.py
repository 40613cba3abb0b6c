"""The tokens that a tokenizer's post-processor puts around a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Template:
    """Ids ``before`` and ``after`` a text's own."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()

    def around(self, ids: Sequence[int]) -> list[int]:
        """The text's ids with those around them."""
        return [*self.before, *ids, *self.after]


def template_of(backend: Any) -> Template:
    """What a `tokenizers.Tokenizer` puts around a single text."""
    for text in ("a", "0", "."):
        encoding = backend.encode(text, add_special_tokens=True)
        own = [n for n, added in enumerate(encoding.special_tokens_mask) if not added]
        if own:
            return Template(tuple(encoding.ids[: own[0]]), tuple(encoding.ids[own[-1] + 1 :]))
    return Template()


def with_template(serialized: bytes, template: Template, tokens: dict[int, str]) -> bytes:
    """A tokenizer.json whose post-processor puts `template` around a text; what it says of offsets stays.

    Args:
        tokens: spelling of each id of the template.
    """
    content = json.loads(serialized)
    post = content.get("post_processor") or {}
    kept = [step for step in post.get("processors", [post]) if step.get("type") == "ByteLevel"]
    pieces = [{"SpecialToken": {"id": tokens[i], "type_id": 0}} for i in template.before]
    pieces.append({"Sequence": {"id": "A", "type_id": 0}})
    pieces += [{"SpecialToken": {"id": tokens[i], "type_id": 0}} for i in template.after]
    second = [{kind: {**piece, "type_id": 1} for kind, piece in entry.items()} for entry in pieces]
    for entry in second:
        if "Sequence" in entry:
            entry["Sequence"]["id"] = "B"
    ids = sorted({*template.before, *template.after})
    step = {
        "type": "TemplateProcessing",
        "single": pieces,
        "pair": [*pieces, *second],
        "special_tokens": {tokens[i]: {"id": tokens[i], "ids": [i], "tokens": [tokens[i]]} for i in ids},
    }
    content["post_processor"] = {"type": "Sequence", "processors": [*kept, step]} if kept else step
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
