"""Sequence-AltUp in plain PyTorch, and its share of a KV cache: only anchors run the layer, whatever comes in pieces.

Written as the paper has it (arXiv 2301.13310, Algorithm 2): predict, compute, correct. Tokens are counted in each row
of a batch, so rows that begin with padding have their anchors elsewhere than others; keys of rows that have fewer
anchors than others are hidden.

Shape legend: B samples, S positions of this call, A anchors among them (in the row that has most), P anchors before
them, D width of a layer, s stride.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers import initialization as init
from transformers.cache_utils import DynamicLayer

from altup_moe.model.reference.config import AltUpMoEConfig
from altup_moe.model.reference.layers import full, never_halved


class AnchorLayer(DynamicLayer):
    """One layer's cache: keys and values of anchors, and what the tokens after the last anchor need.

    ``seen``: tokens so far. ``state``: tensors with a row a sample (`Strided` says which).
    """

    is_croppable = False

    keys: Tensor | None
    values: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0
        self.state: dict[str, Tensor] = {}

    def get_seq_length(self) -> int:
        """Tokens, not anchors: whoever asks counts tokens."""
        return self.seen

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.seen = 0
        self.state.clear()

    def crop(self, tokens_to_remove: int) -> None:
        """Not possible: the tokens between anchors are not kept."""
        raise ValueError("a cache of strided layers cannot be cropped")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows of beams."""
        self._rows(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each row several times."""
        self._rows(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Some rows."""
        self._rows(lambda t: t[indices])

    def _rows(self, fn: Callable[[Tensor], Tensor]) -> None:
        if self.keys is not None and self.values is not None:
            self.keys, self.values = fn(self.keys), fn(self.values)
        self.state = {name: fn(t) for name, t in self.state.items()}


def token_order(padding: Tensor | None, s: int, past: int, device: torch.device) -> Tensor:
    """Which token of its row each position is, from 0, and -1 on padding: int64 [B or 1, S].

    Args:
        padding: [B, past + S], 1 on tokens and 0 on padding, or None.
    Raises:
        ValueError: a finished mask of four dimensions, which does not say where a row begins.
    """
    if padding is None:
        return torch.arange(past, past + s, device=device)[None]
    if padding.ndim != 2:
        raise ValueError("sequence_stride > 1 takes a padding mask [B, S] and a DynamicCache")
    token = padding.long()
    return torch.where(token > 0, token.cumsum(-1) - 1, -1)[:, -s:]


def anchor_layer(cache: DynamicCache | None, layer: int) -> AnchorLayer:
    """The cache's part for a strided layer, put there at its first use; without a cache a part of its own.

    Raises:
        ValueError: a cache of another kind, as those of a fixed size.
    """
    if cache is None:
        return AnchorLayer()
    while len(cache.layers) <= layer:
        cache.layers.append(DynamicLayer())
    if type(cache.layers[layer]) is DynamicLayer:
        cache.layers[layer] = AnchorLayer()
    if not isinstance(cache.layers[layer], AnchorLayer):
        raise ValueError(f"sequence_stride > 1 takes a DynamicCache, not layers of {cache.layers[layer]}")
    return cache.layers[layer]


class Anchors(NamedTuple):
    """Where a layer runs, and where its anchors may look.

    ``positions_BA`` [B or 1, A]: the anchors'. ``keys_BT`` [B or 1, P + A]: those of all anchors so far, counted in
    tokens of the row. ``visible``: bool, broadcasts to [B, 1, A, P + A].
    """

    positions_BA: Tensor
    keys_BT: Tensor
    visible: Tensor


class Strided(nn.Module):
    """What surrounds a layer F of stride s. Causal: this is a decoder's.

    altup: y^_i = a1 x_i + a2 x_a(i), y_i = y^_i + b (F(x)_a(i) - y^_a(i)). stride_and_skip: F at anchors, x elsewhere.
    average_pool: F of the mean of the s tokens that end at the anchor (of fewer at the beginning), for all its window.
    """

    def __init__(self, config: AltUpMoEConfig, layer: int) -> None:
        super().__init__()
        self.stride, self.method, self.layer = config.sequence_stride, config.sequence_method, layer
        if self.method == "altup":
            self.predict = nn.Parameter(torch.empty(2, dtype=torch.float32))
            self.correct = nn.Parameter(torch.empty(1, dtype=torch.float32))

    def reset(self) -> None:
        """a1 = 1, a2 = 0, b = 1: every token takes its anchor's update."""
        if self.method == "altup":
            init.copy_(self.predict, torch.tensor([1.0, 0.0]))
            init.ones_(self.correct)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Strided:
        return super()._apply(never_halved(fn), recurse)

    def forward(
        self,
        x_BSD: Tensor,
        run: Callable[..., tuple[Tensor, Any]],
        positions_BS: Tensor,
        cache: DynamicCache | None,
        order_BS: Tensor | None,
    ) -> tuple[Tensor, Any]:
        """y [B, S, D], and what F said beside its output (None if it had no anchor to run on).

        Args:
            run: F(u [B, A, D], where) -> (y [B, A, D], anything).
            order_BS: which token of its row each one is, from 0; -1 on padding. None: 0 .. S - 1 in all rows.
        """
        b, s, d = x_BSD.shape
        if order_BS is None:
            order_BS = torch.arange(s, device=x_BSD.device)[None]
        order_BS = order_BS.expand(b, s)
        held = anchor_layer(cache, self.layer)
        source_BSD = self._means(x_BSD, order_BS >= 0, held) if self.method == "average_pool" else x_BSD
        anchor_BS = (order_BS >= 0) & (order_BS % self.stride == 0)
        # (u, F(u)) of the last anchor before these tokens, then of theirs.
        pairs = held.state.get("last", x_BSD.new_zeros(b, 1, 2, d))
        said = None
        count = int(anchor_BS.sum(1).max())
        if count:
            index_BA = (~anchor_BS).long().argsort(dim=1, stable=True)[:, :count]
            known_BA = anchor_BS.gather(1, index_BA)
            u_BAD = source_BSD.gather(1, index_BA[..., None].expand(-1, -1, d))
            keys_BT = torch.cat([held.state.get("orders", order_BS[:, :0]), order_BS.gather(1, index_BA)], dim=1)
            held.state["orders"] = keys_BT
            where = Anchors(positions_BS.expand(b, s).gather(1, index_BA), keys_BT, self._mask(known_BA, held))
            y_BAD, said = run(u_BAD, where)
            pairs = torch.cat([pairs, torch.stack([u_BAD, y_BAD], dim=2)], dim=1)
        which_BS = anchor_BS.cumsum(1)
        own = pairs.gather(1, which_BS[..., None, None].expand(-1, -1, 2, d))
        held.state["last"], held.seen = own[:, -1:], held.seen + s
        u_BSD, y_BSD = own.unbind(2)
        return self.place(x_BSD, u_BSD, y_BSD, anchor_BS), said

    def place(self, x_BSD: Tensor, u_BSD: Tensor, y_BSD: Tensor, anchor_BS: Tensor) -> Tensor:
        """All tokens after the layer. `u`, `y`: at every token its anchor's. `anchor_BS`: bool, which are anchors."""
        if self.method == "average_pool":
            return y_BSD
        if self.method == "stride_and_skip":
            return torch.where(anchor_BS[..., None], y_BSD, x_BSD)
        a1, a2 = self.predict
        predicted_BSD, predicted_anchor_BSD = a1 * full(x_BSD) + a2 * full(u_BSD), (a1 + a2) * full(u_BSD)
        return (predicted_BSD + self.correct * (full(y_BSD) - predicted_anchor_BSD)).to(x_BSD.dtype)

    def _mask(self, known_BA: Tensor, held: AnchorLayer) -> Tensor:
        """Bool [B, 1, A, P + A], True where an anchor may look: at itself and known ones before it."""
        b, a = known_BA.shape
        before_BP = held.state.get("known", known_BA[:, :0])
        held.state["known"] = torch.cat([before_BP, known_BA], dim=1)
        square = torch.ones(a, a, dtype=torch.bool, device=known_BA.device)
        # What stands in for missing anchors sees itself: a softmax needs something.
        among = (known_BA[:, None, :] & square.tril()) | torch.eye(a, dtype=torch.bool, device=known_BA.device)
        return torch.cat([before_BP[:, None, :].expand(b, a, -1), among], dim=-1)[:, None]

    def _means(self, x_BSD: Tensor, token_BS: Tensor, held: AnchorLayer) -> Tensor:
        """At every position the mean of the s tokens that end there, or of as many as there are."""
        b, _, d = x_BSD.shape
        reach = self.stride - 1
        xs = torch.cat([held.state.get("x", x_BSD.new_zeros(b, reach, d)), x_BSD * token_BS[..., None]], dim=1)
        tokens = torch.cat([held.state.get("token", token_BS.new_zeros(b, reach)), token_BS], dim=1)
        held.state["x"], held.state["token"] = xs[:, -reach:], tokens[:, -reach:]
        counts_BS = tokens.unfold(1, self.stride, 1).sum(-1).clamp(min=1)
        return (full(xs.unfold(1, self.stride, 1)).sum(-1) / counts_BS[..., None]).to(x_BSD.dtype)


class StridedEncoder(Strided):
    """An encoder's: all anchors see each other, and a mean is that of the window's tokens.

    Windows are those of positions. Paddings end a row, so that a window whose anchor is one holds nothing else: such
    windows run the layer (experts see them), and no other looks at them.
    """

    def forward(
        self,
        x_BSD: Tensor,
        run: Callable[..., tuple[Tensor, Any]],
        positions_BS: Tensor,
        cache: DynamicCache | None,
        order_BS: Tensor | None,
    ) -> tuple[Tensor, Any]:
        """y [B, S, D], and what F said beside its output. As of `Strided`, but `order_BS` says only what is padding."""
        s, stride = x_BSD.shape[1], self.stride
        assert order_BS is not None
        starts, token_BS = range(0, s, stride), order_BS >= 0
        u_BAD = x_BSD[:, ::stride]
        if self.method == "average_pool":
            means = [_mean(x_BSD[:, a : a + stride], token_BS[:, a : a + stride]) for a in starts]
            u_BAD = torch.stack(means, dim=1)
        position = torch.arange(s, device=x_BSD.device)
        anchors_BA = position[None, ::stride]
        seen_BA = torch.stack([token_BS[:, a : a + stride].any(1) for a in starts], dim=1)
        y_BAD, said = run(u_BAD, Anchors(anchors_BA, anchors_BA, seen_BA[:, None, None, :]))
        own = position // stride
        return self.place(x_BSD, u_BAD[:, own], y_BAD[:, own], (position % stride == 0)[None]), said


def _mean(x_BWD: Tensor, token_BW: Tensor) -> Tensor:
    """Mean of a window's tokens; of all its positions where it has none."""
    weight_BW = (token_BW | ~token_BW.any(1, keepdim=True)).to(x_BWD.dtype)
    return ((full(x_BWD) * weight_BW[..., None]).sum(1) / weight_BW.sum(1, keepdim=True)).to(x_BWD.dtype)


def unpadded_start(padding_BS: Tensor) -> Tensor | None:
    """Indices [B, S] of each row turned so that it begins with its first token; None where all rows do.

    What stood before that token then ends the row.
    """
    first_B1 = (padding_BS > 0).int().argmax(1, keepdim=True)
    if not first_B1.any():
        return None
    s = padding_BS.shape[1]
    return (torch.arange(s, device=padding_BS.device)[None] + first_B1) % s


def turn(x_BSD: Tensor, index_BS: Tensor) -> Tensor:
    """Each row's positions in another order."""
    return x_BSD.gather(1, index_BS[..., None].expand(-1, -1, x_BSD.shape[-1]))
