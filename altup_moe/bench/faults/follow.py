"""Follow the files of a run while it writes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class Follower:
    """New whole lines of a file of JSON objects. A file that was replaced or cut is read from its start."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset = 0, 0

    def new(self) -> list[dict[str, Any]]:
        """Records of the lines that are new since the last call; unreadable ones are left out."""
        try:
            with open(self._path, "rb") as file:
                now = os.fstat(file.fileno())
                if now.st_ino != self._inode or now.st_size < self._offset:
                    self._inode, self._offset = now.st_ino, 0
                file.seek(self._offset)
                text = file.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = []
        for line in whole.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                found.append(record)
        return found
