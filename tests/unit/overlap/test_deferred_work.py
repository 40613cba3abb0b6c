"""Posted work is done once, in the first window or when its result is asked for."""

from __future__ import annotations

import torch

from altup_moe.overlap.deferred_work import later, run_posted


def test_a_window_runs_what_was_posted_in_order() -> None:
    seen: list[str] = []
    works = [later(lambda name=name: seen.append(name) or name) for name in "ab"]
    assert seen == []
    run_posted()
    assert seen == ["a", "b"]
    run_posted()
    assert [work.result() for work in works] == ["a", "b"]
    assert seen == ["a", "b"]


def test_without_a_window_the_result_is_made_when_asked_for() -> None:
    seen: list[int] = []
    work = later(lambda: seen.append(1) or 7)
    assert work.result() == 7
    run_posted()
    assert seen == [1]


def test_work_keeps_the_grad_mode_it_was_posted_in() -> None:
    x = torch.ones(2, requires_grad=True)
    work = later(lambda: x * 2)
    with torch.no_grad():
        run_posted()
    assert work.result().requires_grad
