"""What kind of Hugging Face model a directory holds: another's, or an export of a run of ours."""

from __future__ import annotations

import json
from pathlib import Path

OWN_TYPES = ("altup_moe", "altup_moe_t5")
"""`model_type` of exports whose class is ours; nothing imports them."""
USE_THE_RUN = "is an export of a run, for transformers; the run that it came from would fit"


def model_type(directory: Path) -> str | None:
    """`model_type` of its config.json, "" if the file does not say; None without such a file."""
    file = directory / "config.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return ""
    return str(content.get("model_type", "")) if isinstance(content, dict) else ""
