"""Imports in a block without garbage collections; what they make is old afterwards."""

from __future__ import annotations

import gc

import pytest

from altup_moe.config.imports import without_collections


class Module:
    """What an import makes."""


def test_nothing_is_collected_inside_and_all_is_old_afterwards() -> None:
    with pytest.raises(ImportError), without_collections():
        assert not gc.isenabled()
        made = Module()
        raise ImportError
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0
    assert any(one is made for one in gc.get_objects(generation=2))


def test_a_process_that_sees_to_its_garbage_itself_is_left_alone() -> None:
    gc.freeze()
    try:
        with without_collections():
            assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
