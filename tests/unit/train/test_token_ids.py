"""Which ids are outside a vocabulary, and where they lie in a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from altup_moe.data.indexed import write_indexed
from altup_moe.data.split import whole_documents
from altup_moe.data.windows import EpochWindows
from altup_moe.train.batches import Batch
from altup_moe.train.guards.token_ids import BadId, bad_id, in_file

VOCAB = 50
TOKENS = torch.arange(12).view(2, 6)
GOOD = Batch(TOKENS, TOKENS + 1, torch.ones(2, 6))
ENCODER = replace(GOOD, encoder_tokens=TOKENS.clone(), encoder_mask=torch.ones(2, 6))


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("tokens", 50, "token"),
        ("tokens", -1, "token"),
        ("labels", 50, "label"),
        ("labels", -100, "label"),
        ("encoder_tokens", 1 << 40, "encoder token"),
    ],
)
def test_an_id_is_found_wherever_it_stands(name: str, value: int, what: str) -> None:
    spoiled = getattr(ENCODER, name).clone()
    spoiled[1, 3] = value
    found = bad_id([ENCODER, replace(ENCODER, **{name: spoiled})], VOCAB)
    assert found == BadId(1, 1, 3, what, value)
    assert found.problem == f"{what} 3 is {value}"


def test_what_no_model_sees_may_be_anything() -> None:
    labels, mask = GOOD.labels.clone(), GOOD.loss_mask.clone()
    labels[0, 2], mask[0, 2] = -100, 0.0
    assert bad_id([GOOD, replace(GOOD, labels=labels, loss_mask=mask)], VOCAB) is None
    assert bad_id([GOOD], 12) == BadId(0, 1, 5, "label", 12)


@pytest.mark.parametrize("vocab_size", [50, 70_000])
def test_the_byte_in_the_file(vocab_size: int, tmp_path: Path) -> None:
    """Two bytes an id, or four. Documents of 7 tokens, windows of 5: the third document's fourth token is spoiled."""
    indexed = write_indexed(tmp_path / "data", [list(range(7))] * 6, vocab_size)
    at = 17 * indexed.dtype.itemsize
    with indexed.bin.open("r+b") as file:
        file.seek(at)
        file.write(np.asarray([60_000 if vocab_size == 50 else 80_000], indexed.dtype).tobytes())
    windows = EpochWindows(indexed, whole_documents(indexed.lengths), 5, 1, seed=3)
    wanted = (str(indexed.bin), at, 60_000 if vocab_size == 50 else 80_000)
    samples = SimpleNamespace(samples=SimpleNamespace(windows=windows))
    hit = [number for number in range(2 * len(windows)) if windows[number].max() >= vocab_size]
    assert hit
    for number in range(2 * len(windows)):
        assert in_file(samples, number, vocab_size) == (wanted if number in hit else None)
    mixed = SimpleNamespace(order=[(1, hit[0])], parts=[SimpleNamespace(), samples], rewind=False)
    assert in_file(mixed, 0, vocab_size) == wanted
    assert in_file(SimpleNamespace(), 0, vocab_size) is None
