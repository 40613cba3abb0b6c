"""The browser of the tests of pages."""

from tests.unit.conftest import browser

__all__ = ["browser"]
