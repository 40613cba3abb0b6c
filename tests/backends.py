"""Rows of the table of backends as test parameters: one whose package is missing is skipped by name."""

from __future__ import annotations

from typing import Any

import pytest

from altup_moe.config.checks import PACKAGES


def installed(name: str) -> Any:
    """A backend's name as a parameter."""
    package = PACKAGES.get(name)
    missing = package is not None and not package.found()
    return pytest.param(name, marks=pytest.mark.skipif(missing, reason=f"{name} is not installed"))
