"""How a step of the wide stream reads, mixes and writes: one class for each kind of weights.

All have two orders. `inline` mixes once the output is known. `deferred` posts what does not need the output as deferred
work, which runs while the step communicates (overlap.deferred_work); `mix` is the result of `deferred` for a known
output, with which a recomputed stack rebuilds its states.

| weights | posted | waits for the output |
|---|---|---|
| static (altup.static) | the pass over the stream | an axpy on one block |
| static, joined: attention's | nothing: the next step's pass is of both | an axpy of two outputs |
| of every token, lagged (mhc_single_pass) | the coefficients' network and the pass | an axpy on one block |
| of every token (mhc) | M X, g and Sinkhorn's iterations | writing, the coefficients' network, the read |
| of every token, M = I (independent_hc, gated_residual) | g | the same |
| dynamic (Gemma-3n's) | nothing: always inline | all |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from altup_moe.altup import token_mixing
from altup_moe.altup.dynamic import Dynamic, active, correct, predict
from altup_moe.altup.kernels import Kernel
from altup_moe.altup.lazy import load_object
from altup_moe.altup.mixing import Ahead, Pending, Reading, catch_up, join, look_ahead, mix_and_write, read, write_back
from altup_moe.altup.per_token import Connection
from altup_moe.altup.static import Mixing
from altup_moe.altup.variants import Level, StreamVariant
from altup_moe.model.recompute import Travelling
from altup_moe.overlap.deferred_work import later
from altup_moe.timeline.spans import span

Compute = Callable[[Tensor], tuple[Tensor, Any]]
"""u [S, B, D] -> (y [S, B, D], context)."""


@dataclass(frozen=True)
class StepSettings:
    """What a step's arithmetic has to know.

    ``block``: j, the block that the step computes on. ``eps``: of norms. ``joins``: static weights need no pass for it
    alone, for one of the next step follows in the same layer.
    """

    variant: StreamVariant
    width: int
    block: int
    level: Level
    eps: float
    clip: float | None
    kernel: Kernel
    joins: bool = False


class StepArithmetic(Protocol):
    """A step's part of the walk (model.altup_block)."""

    def __init__(self, settings: StepSettings, coefficients: nn.ParameterDict) -> None: ...

    def inline(self, state: Travelling, compute: Compute) -> Travelling:
        """The step, mixed when its output is known."""

    def deferred(self, state: Travelling, after: Reading | None, compute: Compute) -> Travelling:
        """The step, whose passes run while it communicates.

        Args:
            after: the next step's read; None at the end of a chunk, where the stream is written out.
        """

    def mix(self, state: Travelling, after: Reading | None, y: Tensor) -> Travelling:
        """The result of `deferred` for a known output y [S, B, D]."""

    def reading(self, following: Reading | None) -> Reading:
        """What the step reads. ``following``: the read after it, if the chunk has one."""


class StaticArithmetic:
    """Weights that are the same for all tokens (altup.static, altup.mixing)."""

    def __init__(self, settings: StepSettings, coefficients: nn.ParameterDict) -> None:
        self._settings, self._coefficients = settings, coefficients

    def _mixing(self) -> Mixing:
        s = self._settings
        return s.variant.mixing(s.block, dict(self._coefficients.items()), s.level)

    def reading(self, following: Reading | None) -> Reading:
        """A block, or the weights of a sum."""
        mixing = self._mixing()
        if not self._settings.joins:
            return Reading(mixing.read)
        assert following is not None
        after = following.weights
        assert after is not None
        return Reading(mixing.read, through=mixing.mix[after] if isinstance(after, int) else after @ mixing.mix)

    def inline(self, state: Travelling, compute: Compute) -> Travelling:
        """Read, compute, then mix and write in one pass."""
        assert state.blocks is not None
        mixing = self._mixing()
        stream, u = read(state.blocks, mixing.read, self._settings.width)
        y, _ = compute(u)
        return Travelling(mix_and_write(stream, mixing.written(u, y), mixing, self._settings.kernel))

    def deferred(self, state: Travelling, after: Reading | None, compute: Compute) -> Travelling:
        """The pass is posted, or left to the next step."""
        s, mixing, u = self._settings, self._mixing(), state.u
        if u is None:
            assert state.blocks is not None
            blocks, u = read(state.blocks, mixing.read, s.width)
            state = Travelling(blocks)
        if s.joins:
            y, _ = compute(u)
            return self._joined(state, mixing.written(u, y), mixing, after)
        ahead = later(lambda: look_ahead(_pending(state), mixing, after, s.kernel))
        y, _ = compute(u)
        return self._after(ahead.result(), mixing.written(u, y), mixing, after)

    def mix(self, state: Travelling, after: Reading | None, y: Tensor) -> Travelling:
        """``y`` is what the step writes."""
        mixing = self._mixing()
        if self._settings.joins:
            return self._joined(state, y, mixing, after)
        return self._after(look_ahead(_pending(state), mixing, after, self._settings.kernel), y, mixing, after)

    def _joined(self, state: Travelling, y: Tensor, mixing: Mixing, after: Reading | None) -> Travelling:
        assert after is not None
        stream, u = join(_pending(state), state.through, y, mixing, after, self._settings.kernel)
        return _travelling(stream, u)

    def _after(self, ahead: Ahead, y: Tensor, mixing: Mixing, after: Reading | None) -> Travelling:
        kernel = self._settings.kernel
        if after is None:
            assert ahead.blocks is not None
            return Travelling(write_back(ahead.blocks, y, mixing.write, kernel))
        stream, u = catch_up(ahead, y, mixing, after, kernel)
        return Travelling(None, None, u) if stream is None else _travelling(stream, u, ahead.through)


class TokenArithmetic:
    """Weights computed for every token (altup.per_token, altup.token_mixing)."""

    def __init__(self, settings: StepSettings, coefficients: nn.ParameterDict) -> None:
        self._settings, self._coefficients = settings, coefficients

    def reading(self, following: Reading | None) -> Reading:
        """Not known before the stream is."""
        return Reading(None)

    def _connect(self, stream: Tensor) -> tuple[Tensor, Connection]:
        """(the stream for the step's passes, the step's weights)."""
        s = self._settings
        assert s.variant.connection is not None
        c = dict(self._coefficients.items())
        x_KTD = token_mixing.by_token(stream, s.width)
        found: Connection = load_object(s.variant.connection)(x_KTD, c, s.eps, s.kernel)
        return found.stream.view_as(stream), found

    def _input(self, state: Travelling, stream: Tensor, found: Connection) -> Tensor:
        if self._settings.variant.lagged:
            return first_input(stream, self._settings.width) if state.u is None else state.u
        if found.read is None:
            assert found.u is not None
            return found.u.to(stream.dtype).view(-1, *stream.shape[1:])
        return token_mixing.read(stream, found.read, self._settings.kernel)

    def inline(self, state: Travelling, compute: Compute) -> Travelling:
        """All coefficients, read, compute, then mix and write in one pass."""
        assert state.blocks is not None
        kernel = self._settings.kernel
        stream, found = self._connect(state.blocks)
        y, _ = compute(self._input(state, stream, found))
        writing = found.writing()
        stream = token_mixing.mix_and_write(stream, y, writing.mix, writing.write, kernel)
        if not self._settings.variant.lagged:
            return Travelling(stream)
        assert found.read is not None
        return Travelling(stream, None, token_mixing.read(stream, found.read, kernel))

    def deferred(self, state: Travelling, after: Reading | None, compute: Compute) -> Travelling:
        """Where the step's input is known, all is posted; else what the input does not need."""
        lagged = self._settings.variant.lagged
        if lagged and state.u is not None:
            ahead = later(lambda: self._ahead(*self._connect(self._written(state))))
            y, _ = compute(state.u)
            return self._after(ahead.result(), y, after)
        stream, found = self._connect(self._written(state))
        ahead = later(lambda: self._ahead(stream, found))
        y, _ = compute(self._input(state, stream, found))
        return self._after(ahead.result(), y, after)

    def mix(self, state: Travelling, after: Reading | None, y: Tensor) -> Travelling:
        """``y`` is what the step writes."""
        return self._after(self._ahead(*self._connect(self._written(state))), y, after)

    def _written(self, state: Travelling) -> Tensor:
        """The stream before the step, formed where it is pending."""
        assert state.blocks is not None
        if state.y is None:
            return state.blocks
        assert state.weights is not None
        return token_mixing.write(state.blocks, state.y, state.weights, self._settings.kernel)

    def _ahead(self, stream: Tensor, found: Connection) -> _TokensAhead:
        writing, kernel = found.writing(), self._settings.kernel
        if not self._settings.variant.lagged:
            blocks = stream if writing.mix is None else token_mixing.mix(stream, writing.mix, kernel)
            return _TokensAhead(blocks, writing.write)
        assert found.read is not None
        assert writing.mix is not None
        blocks, a, s_T = token_mixing.look_ahead(stream, writing.mix, writing.write, found.read, kernel)
        return _TokensAhead(blocks, writing.write, a, s_T)

    def _after(self, ahead: _TokensAhead, y: Tensor, after: Reading | None) -> Travelling:
        u = None if ahead.a is None or ahead.s is None else token_mixing.catch_up(ahead.a, y, ahead.s)
        if after is not None:
            return Travelling(None, None, u) if after.last else Travelling(ahead.blocks, y, u, ahead.write)
        stream = token_mixing.mix_and_write(ahead.blocks, y, None, ahead.write, self._settings.kernel)
        return Travelling(stream, None, u)


@dataclass(frozen=True)
class _TokensAhead:
    """What of a step needs no output: H = M X, g [K, T], and of a lagged one a and s (`token_mixing.look_ahead`)."""

    blocks: Tensor
    write: Tensor
    a: Tensor | None = None
    s: Tensor | None = None


class DynamicArithmetic:
    """Gemma-3n's: predict, compute on the predicted block, correct (altup.dynamic). Always inline."""

    def __init__(self, settings: StepSettings, coefficients: nn.ParameterDict) -> None:
        self._settings, self._coefficients = settings, coefficients

    def reading(self, following: Reading | None) -> Reading:
        """Not known before the stream is."""
        return Reading(None)

    def inline(self, state: Travelling, compute: Compute) -> Travelling:
        """Around a branch, the layer's output is the branch's and its input."""
        assert state.blocks is not None
        s, c = self._settings, dict(self._coefficients.items())
        layer = Dynamic(s.block, s.eps, s.clip)
        with span("mix"):
            predicted = predict(state.blocks, c, layer)
        u = active(predicted, layer, s.width)
        y, _ = compute(u)
        with span("mix"):
            return Travelling(correct(predicted, u + y if s.level == "branch" else y, c, layer))

    def deferred(self, state: Travelling, after: Reading | None, compute: Compute) -> Travelling:
        """Never asked for."""
        raise NotImplementedError("dynamic coefficients follow from the output")

    def mix(self, state: Travelling, after: Reading | None, y: Tensor) -> Travelling:
        """Never asked for."""
        raise NotImplementedError("dynamic coefficients follow from the output")


def arithmetic_of(settings: StepSettings, coefficients: nn.ParameterDict) -> StepArithmetic:
    """The kind that a variant's row asks for."""
    if settings.variant.weights is not None:
        return StaticArithmetic(settings, coefficients)
    if settings.variant.connection is not None:
        return TokenArithmetic(settings, coefficients)
    return DynamicArithmetic(settings, coefficients)


def first_input(stream: Tensor, width: int) -> Tensor:
    """What the first step of a lagged stream reads: block 0 [S, B, D] of the stream [K*S, B, D] (DeepSeek-V4.1)."""
    return stream.chunk(width)[0]


def _pending(state: Travelling) -> Pending:
    assert state.blocks is not None
    outputs = tuple(y for y in (state.earlier, state.y) if y is not None)
    return Pending(state.blocks, outputs, state.weights)


def _travelling(stream: Pending, u: Tensor, through: Tensor | None = None) -> Travelling:
    *earlier, y = stream.outputs
    return Travelling(stream.blocks, y, u, stream.weights, earlier[0] if earlier else None, through)
