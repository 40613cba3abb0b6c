"""Imports in a block without garbage collections; what they make is old afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from altup_moe.config.imports import without_collections


@pytest.fixture(autouse=True)
def nothing_is_frozen() -> Iterator[None]:
    """As in a process of its own; the tests' process has frozen what it collected."""
    gc.unfreeze()
    yield
    gc.freeze()


class Module:
    """What an import makes."""


def test_nothing_is_collected_inside_and_all_is_old_afterwards() -> None:
    with without_collections():
        assert not gc.isenabled()
        made = Module()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert any(one is made for one in gc.get_objects(generation=2))


def test_an_import_that_fails_leaves_the_collector_on() -> None:
    with pytest.raises(ImportError), without_collections():
        raise ImportError
    assert gc.isenabled()


def test_a_process_that_sees_to_its_garbage_itself_is_left_alone() -> None:
    gc.freeze()
    with without_collections():
        assert gc.isenabled()
    assert gc.get_freeze_count() > 0
