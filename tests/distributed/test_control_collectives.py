"""Ranks agree: flags, messages of different lengths, and the first failure."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from altup_moe.parallel.control_collectives import any_rank, first_problem, gather_json
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed
CPU = torch.device("cpu")


def _rank() -> tuple:
    rank = dist.get_rank()
    flags = any_rank([rank == 1, False, rank != 1, True], CPU)
    messages = gather_json({"rank": rank, "text": "ü" * rank, "none": None}, CPU)
    problems = [first_problem(p, CPU) for p in (None, f"by {rank}" if rank else None, f"by {rank}")]
    return flags, messages, problems


def test_every_rank_hears_the_same() -> None:
    answers = run_ranks(3, _rank)
    assert answers == [answers[0]] * 3
    flags, messages, problems = answers[0]
    assert flags == [True, False, True, True]
    assert messages == [{"rank": r, "text": "ü" * r, "none": None} for r in range(3)]
    assert problems == [None, "by 1", "by 0"]
