"""Rows of the table of backends as test parameters.

One whose package is missing is skipped by name, except Tutel, which is on no package index: there its adapter runs with
what stands in for it (`tests/standins`, put on the path by `tests/conftest.py` for tests so marked).
"""

from __future__ import annotations

from typing import Any

import pytest

from altup_moe.config.packages import PACKAGES


def usable(name: str) -> bool:
    """Whether a backend's package is here."""
    package = PACKAGES.get(name)
    return package is None or package.found()


def installed(name: str) -> Any:
    """A backend's name as a parameter."""
    if name == "tutel" and not usable(name):
        return pytest.param(name, id="tutel (stand-in)", marks=pytest.mark.stand_in("tutel"))
    return pytest.param(name, marks=pytest.mark.skipif(not usable(name), reason=f"{name} is not installed"))
