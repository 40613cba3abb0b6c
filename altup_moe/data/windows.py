"""Windows of consecutive tokens over the shuffled documents of a token file, one order for each epoch.

In an epoch, the documents are laid end to end in a random order and cut into windows, which are read in a random order.
Every epoch reads every window once. Window `n` of epoch `e` depends on the tokens, the seed and (e, n) alone: the
number of epochs that a run asks for plays no part. The order of epoch 0 is that of Megatron's GPTDataset for one epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from altup_moe.data.indexed import IndexedTokens
from altup_moe.data.objectives import sample_generator
from altup_moe.data.split import TextPart


class TokenWindows(Protocol):
    """Windows by number, and how many there are (of training windows: at least in one epoch)."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, number: int) -> np.ndarray:
        """Token ids, int64 [window]; the last window of a validation may be shorter."""


@dataclass(frozen=True)
class _Epoch:
    """Documents of a part in the order of one epoch ([N]), the ends of each in that order ([N], in tokens), the order
    of the full windows ([windows]), and the tokens before the first window."""

    number: int
    documents: np.ndarray
    ends: np.ndarray
    windows: np.ndarray
    offset: int


class EpochWindows:
    """Windows of `size` tokens, each followed by `overlap` tokens that the next window begins with.

    What an epoch leaves over at its ends is shorter than a window. With `tail` it is the last window instead, so that
    the windows of epoch 0 hold every token.

    Args:
        overlap: 1 where each token is the label of the one before it; else 0.
        tail: a last window of at least 2 tokens that may be shorter than the others.
    """

    def __init__(
        self, tokens: IndexedTokens, part: TextPart, size: int, overlap: int, seed: int, *, tail: bool = False
    ) -> None:
        self.part, self.size, self.overlap, self.seed = part, size, overlap, seed
        self._starts = tokens.pointers[part.documents] // tokens.dtype.itemsize + part.begins
        self.file = tokens.bin
        self._tokens = np.memmap(tokens.bin, tokens.dtype, "r")
        self.full = max(0, (part.tokens - overlap) // size)
        self._rest = part.tokens - self.full * size
        self.tail = tail and self._rest >= 2
        self._epoch: _Epoch | None = None

    def __len__(self) -> int:
        return self.full + self.tail

    def __getitem__(self, number: int) -> np.ndarray:
        return np.concatenate([ids for _, ids in self.pieces(number)]).astype(np.int64)

    def pieces(self, number: int) -> list[tuple[int, np.ndarray]]:
        """A window as it lies in the file: (number of its first token in the .bin, ids) of each document in it."""
        epoch = self._order(number // len(self))
        at = number % len(self)
        if at == self.full:
            return self._read(epoch, self.full * self.size, self.part.tokens)
        start = epoch.offset + int(epoch.windows[at]) * self.size
        return self._read(epoch, start, start + self.size + self.overlap)

    def _order(self, number: int) -> _Epoch:
        if self._epoch is None or self._epoch.number != number:
            # RandomState's stream is the same in every release of numpy.
            random = sample_generator(self.seed, number) if number else np.random.RandomState(self.seed)
            documents, windows = np.arange(len(self.part.lengths)), np.arange(self.full, dtype=np.uint32)
            random.shuffle(documents)
            random.shuffle(windows)
            # A later epoch leaves over other tokens than the last ones.
            offset = int(random.randint(0, self._rest - self.overlap + 1)) if number and not self.tail else 0
            self._epoch = _Epoch(number, documents, np.cumsum(self.part.lengths[documents]), windows, offset)
        return self._epoch

    def _read(self, epoch: _Epoch, start: int, stop: int) -> list[tuple[int, np.ndarray]]:
        """Tokens [start, stop) of the documents end to end."""
        pieces, at = [], int(np.searchsorted(epoch.ends, start, side="right"))
        while start < stop:
            document = epoch.documents[at]
            end = int(epoch.ends[at])
            inside = int(self._starts[document]) + start - (end - int(self.part.lengths[document]))
            taken = min(stop, end) - start
            pieces.append((inside, self._tokens[inside : inside + taken]))
            start, at = start + taken, at + 1
        return pieces
