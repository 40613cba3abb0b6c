"""Windows: in every epoch each once, whatever was asked for before; nothing twice, nothing of the other part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altup_moe.data.indexed import IndexedTokens, write_indexed
from altup_moe.data.split import TextPart, split_text, whole_documents
from altup_moe.data.windows import EpochWindows

LENGTHS = [1, 40, 7, 23, 2, 64, 5, 31, 11, 90]
TOTAL = sum(LENGTHS)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> IndexedTokens:
    """Documents in which every token is another one: its position in the file."""
    ends = np.cumsum(LENGTHS)
    documents = [np.arange(end - length, end) for end, length in zip(ends, LENGTHS, strict=True)]
    return write_indexed(tmp_path_factory.mktemp("data") / "tokens", documents, 100_000)


def epoch(windows: EpochWindows, number: int) -> list[np.ndarray]:
    return [windows[number * len(windows) + n] for n in range(len(windows))]


@pytest.mark.parametrize(("size", "overlap"), [(16, 1), (16, 0), (1, 1), (273, 1), (274, 0), (100, 0)])
def test_every_epoch_reads_every_window_once(size: int, overlap: int, tokens: IndexedTokens) -> None:
    windows = EpochWindows(tokens, whole_documents(LENGTHS), size, overlap, 3)
    assert len(windows) == (TOTAL - overlap) // size
    orders, ever = [], set()
    for number in range(40):
        read = epoch(windows, number)
        assert {len(window) for window in read} == {size + overlap}
        seen = np.concatenate([window[:size] for window in read])
        assert len(set(seen.tolist())) == len(windows) * size  # no token twice
        if overlap:  # every label once
            labels = np.concatenate([window[1:] for window in read])
            assert len(set(labels.tolist())) == len(windows) * size
        ever |= set(seen.tolist())
        orders.append(tuple(int(window[0]) for window in read))
    assert len(ever) == TOTAL  # what one epoch leaves over, another reads
    if len(windows) > 2:
        assert len(set(orders)) == 40


def _tokens(windows: EpochWindows, epoch_order: Any, start: int, stop: int) -> list[int]:
    return np.concatenate([piece for _, piece in windows._read(epoch_order, start, stop)]).tolist()


def test_documents_stay_in_one_piece_between_windows(tokens: IndexedTokens) -> None:
    """Put end to end in their order, windows are the documents, whole and shuffled."""
    windows = EpochWindows(tokens, whole_documents(LENGTHS), 1, 0, 0)
    ends = np.cumsum(LENGTHS)
    for number in (0, 1, 5):
        epoch(windows, number)
        order = windows._epoch
        assert order is not None
        stream = [token for at in range(TOTAL) for token in _tokens(windows, order, at, at + 1)]
        expected = np.concatenate([np.arange(ends[d] - LENGTHS[d], ends[d]) for d in order.documents])
        assert stream == expected.tolist()
        assert _tokens(windows, order, 3, 250) == expected[3:250].tolist()


@pytest.mark.parametrize("overlap", [0, 1])
def test_one_document_is_read_to_its_end(overlap: int, tokens: IndexedTokens) -> None:
    """Its windows begin elsewhere in later epochs; nothing of it is never read."""
    one = IndexedTokens(tokens.prefix, tokens.dtype, np.array([TOTAL], np.int32), np.array([0]))
    windows = EpochWindows(one, whole_documents([TOTAL]), 100, overlap, 0)
    epochs = [np.concatenate(epoch(windows, number)) for number in range(1000)]
    assert set(np.concatenate(epochs).tolist()) == set(range(TOTAL))
    assert epochs[0].min() == 0


def test_a_window_is_a_function_of_seed_and_number(tokens: IndexedTokens) -> None:
    def windows(seed: int = 5) -> EpochWindows:
        return EpochWindows(tokens, whole_documents(LENGTHS), 8, 1, seed)

    one, numbers = windows(), [0, 95, 3, 40, 33, 34, 200, 0]
    first = [one[n].tolist() for n in numbers]
    assert first == [windows()[n].tolist() for n in numbers]
    assert [one[n].tolist() for n in reversed(numbers)] == first[::-1]
    assert first != [windows(6)[n].tolist() for n in numbers]


@pytest.mark.parametrize("size", [1, 7, 16, 136, 137, 272, 273, 274, 1000])
def test_with_its_tail_every_label_is_read_once(size: int, tokens: IndexedTokens) -> None:
    read = epoch(EpochWindows(tokens, whole_documents(LENGTHS), size, 1, 0, tail=True), 0)
    assert [len(window) for window in read[:-1]] == [size + 1] * (len(read) - 1)
    labels = np.concatenate([window[1:] for window in read])
    assert len(labels) == len(set(labels.tolist())) == TOTAL - 1  # all but the first token of the first document
    whole = epoch(EpochWindows(tokens, whole_documents(LENGTHS), size, 0, 0, tail=True), 0)
    every = np.concatenate(whole)
    assert len(every) == len(set(every.tolist())) == TOTAL - (TOTAL % size == 1)  # a lone token is no sample


@pytest.mark.parametrize("fraction", [0.02, 0.3, 0.9])
def test_parts_share_no_token(fraction: float, tokens: IndexedTokens) -> None:
    """A cut document's tokens belong to one side each."""
    split = split_text([TOTAL], fraction)
    one = IndexedTokens(tokens.prefix, tokens.dtype, np.array([TOTAL], np.int32), np.array([0]))

    def read(part: TextPart) -> set[int]:
        return set(np.concatenate(epoch(EpochWindows(one, part, 4, 1, 0, tail=True), 0)).tolist())

    assert read(split.train) == set(range(split.train.tokens))
    assert read(split.valid) == set(range(split.train.tokens, TOTAL))


def test_a_token_file_may_not_be_written_through(tokens: IndexedTokens) -> None:
    before = Path(tokens.bin).read_bytes()
    window = EpochWindows(tokens, whole_documents(LENGTHS), 90, 0, 0)[0]
    window[:] = 0
    assert Path(tokens.bin).read_bytes() == before
