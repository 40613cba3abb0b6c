"""The page of exit codes, from `altup_moe/config/exit_codes.py`."""

from __future__ import annotations

from docs.generate.markdown import cell, docstring, table, text_of
from docs.generate.source import constants

FILE = "altup_moe/config/exit_codes.py"


def page() -> str:
    """The page's text."""
    named = sorted((int(one.value), one.name, one.doc) for one in constants(FILE))
    return text_of(
        [
            "# Exit codes",
            "",
            f"Every command and launcher ends with one of these. The names are those of `{FILE}`.",
            "",
            *table(
                ["code", "name", "meaning"],
                [
                    ["0", "", "The command did what it was asked."],
                    *([str(code), f"`{name}`", cell(docstring(doc))] for code, name, doc in named),
                ],
                right=(0,),
            ),
            "",
            "A command that a signal ends without a save has 128 plus the signal's number, as a shell says it.",
            "`torchrun` on its own replaces every code but 0 by 1; `altup-moe launch torchrun` passes them on.",
        ]
    )
