"""An HTML file with its data, style and script inside. It asks the network for nothing.

Plotting libraries were weighed (docs/developing/decisions.md); points, lines and cells are all that is drawn here. So
`drawing.js` draws them, with text that came from a user's file set as text alone. A content security policy lets a
browser run that script and nothing else, and fetch nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from html import escape
from importlib.resources import files
from itertools import chain


def page(title: str, body: Iterable[str], data: object, script: str) -> str:
    """The HTML of a page.

    Args:
        title: plain text.
        body: HTML of what stands on the page, with the places where the script draws.
        data: what the script draws, as JSON; numbers are finite.
        script: JavaScript that follows `drawing.js`.
    """
    here = files("altup_moe.report")
    style, kit = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "drawing.js"))
    script = kit + script
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>",
        *body,
        '</main><div id="tip" role="status" hidden></div>',
        f'<script type="application/json" id="data">{_json(data)}</script>',
        f"<script>{script}</script></body></html>",
    ]
    return "\n".join(parts) + "\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(content: object) -> str:
    """JSON for a script element, without characters that could end it."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def controls(selects: Iterable[tuple[str, str]]) -> str:
    """Lists to choose from: (id, label) of each. The script fills them."""
    inside = "".join(f'<label>{label} <select id="{name}"></select></label>' for name, label in selects)
    return f'<div class="controls">{inside}</div>'


def legend(name: str) -> str:
    """The place of a figure's legend."""
    return f'<div class="legend" id="{name}-legend" role="group" aria-label="Shown"></div>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], text: Collection[int] = (), ratio: bool = False) -> str:
    """A table that scrolls in its own box. Heads are escaped here, cells are HTML already.

    Args:
        text: columns of text, which wraps. ratio: whether the columns behind the first hold ratios with a note.
    """
    kinds = ["text" if i in text else "ratio" if ratio and i else "" for i in range(len(heads))]

    def cell(tag: str, content: str, kind: str) -> str:
        return f'<{tag} class="{kind}">{content}</{tag}>' if kind else f"<{tag}>{content}</{tag}>"

    head = "".join(cell("th", escape(h), k) for h, k in zip(heads, kinds, strict=True))
    body = chain.from_iterable(
        (
            f'<tr><th scope="row">{row[0]}</th>',
            *(cell("td", c, k) for c, k in zip(row[1:], kinds[1:], strict=True)),
            "</tr>",
        )
        for row in rows
    )
    # tabindex lets a keyboard scroll the box.
    inside = f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return f'<div class="box" tabindex="0"><table>{inside}</table></div>'
