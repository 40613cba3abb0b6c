"""Rows of the table of backends as test parameters: one whose package is missing is skipped by name."""

from __future__ import annotations

from typing import Any

import pytest

from altup_moe.config.checks import PACKAGES


def usable(name: str) -> bool:
    """Whether a backend's package is here."""
    package = PACKAGES.get(name)
    return package is None or package.found()


def installed(name: str) -> Any:
    """A backend's name as a parameter."""
    return pytest.param(name, marks=pytest.mark.skipif(not usable(name), reason=f"{name} is not installed"))
