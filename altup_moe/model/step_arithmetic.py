"""How a step of the wide stream reads, mixes and writes: one class for each kind of weights.

All have two orders. `inline` mixes once the output is known. `deferred` posts what does not need the output as deferred
work, which runs while the step communicates (overlap.deferred_work): `begin` reads, `look_ahead` is what is posted,
`finish` waits for the output. `mix` is the result of `deferred` for a known output, with which a recomputed stack
rebuilds its states.

| weights | posted | waits for the output |
|---|---|---|
| static (altup.static) | the pass over the stream | an axpy on one block |
| static, joined: attention's | nothing: the next step's pass is of both | an axpy of two outputs |
| of every token, lagged (mhc_single_pass) | the coefficients' network and the pass | an axpy on one block |
| of every token (mhc) | M X, g and Sinkhorn's iterations | writing, the coefficients' network, the read |
| of every token, M = I (independent_hc, gated_residual) | g | the same |
| dynamic (Gemma-3n's) | nothing: always inline | all |

Where outputs are delayed (altup.correct), what a step writes is read by the step after the next one: nothing waits for
it but the pass of the next step (model.two_step_walk).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from altup_moe.altup import token_mixing
from altup_moe.altup.dynamic import Dynamic, active, correct, predict
from altup_moe.altup.kernels import Kernel
from altup_moe.altup.lazy import load_object
from altup_moe.altup.mixing import (
    Ahead,
    Pending,
    Reading,
    catch_up,
    join,
    look_ahead,
    mix_and_write,
    read,
    read_ahead,
    write_back,
    write_later,
)
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
    alone, for one of the next step follows in the same layer. ``next_block``: where outputs are delayed, the block that
    the next step computes on; None where the next step reads what this one writes.
    """

    variant: StreamVariant
    width: int
    block: int
    level: Level
    eps: float
    clip: float | None
    kernel: Kernel
    joins: bool = False
    next_block: int | None = None

    @property
    def reads_early(self) -> bool:
        """Whether the next step reads the stream before this one's output is written to it."""
        return self.next_block is not None and self.variant.masked is None


class StepArithmetic:
    """A step's part of the walk (model.altup_block). `Begun` and `Ahead` below are each class's own records."""

    def __init__(self, settings: StepSettings, coefficients: nn.ParameterDict) -> None:
        self._settings, self._parameters = settings, coefficients

    @property
    def _coefficients(self) -> dict[str, Tensor]:
        return dict(self._parameters.items())

    def reading(self, following: Reading | None) -> Reading:
        """What the step reads; here not known before the stream is.

        Args:
            following: the read after it, if the chunk has one.
        """
        return Reading(None)

    def inline(self, state: Travelling, after: Reading | None, compute: Compute) -> Travelling:
        """The step, mixed when its output is known.

        Args:
            after: the next step's read; None at the end of a chunk.
        """
        raise NotImplementedError

    def begin(self, state: Travelling) -> tuple[Any, Tensor]:
        """(Begun: what `look_ahead` takes, or the state itself; the step's input u [S, B, D])."""
        raise NotImplementedError

    def look_ahead(self, begun: Any, after: Reading | None) -> Any:
        """Ahead: what needs no output. Where outputs are delayed, its ``a`` is the next step's input."""
        raise NotImplementedError

    def written(self, u: Tensor, y: Tensor) -> Tensor:
        """What is written of a step that turned u into y, both [S, B, D]."""
        return y

    def finish(self, ahead: Any, y: Tensor, after: Reading | None) -> Travelling:
        """The state after the step. ``y``: what it writes. ``after`` None: the stream is written out."""
        raise NotImplementedError

    def delays(self, after: Reading | None) -> bool:
        """Whether the read after the step does not see its output. The last one sees all."""
        return self._settings.next_block is not None and after is not None and not after.last

    def deferred(self, state: Travelling, after: Reading | None, compute: Compute) -> Travelling:
        """The step, whose `look_ahead` runs while it communicates."""
        begun, u = self.begin(state)
        ahead = later(lambda: self.look_ahead(begun, after))
        y, _ = compute(u)
        return self.finish(ahead.result(), self.written(u, y), after)

    def mix(self, state: Travelling, after: Reading | None, y: Tensor) -> Travelling:
        """The result of `deferred`, where ``y`` is what the step writes."""
        return self.finish(self.look_ahead(state, after), y, after)


class StaticArithmetic(StepArithmetic):
    """Weights that are the same for all tokens (altup.static, altup.mixing). Begun: the state."""

    @property
    def _mixing(self) -> Mixing:
        s = self._settings
        return s.variant.mixing(s.block, self._coefficients, s.level, s.next_block)

    def reading(self, following: Reading | None) -> Reading:
        """A block, or the weights of a sum."""
        return Reading(self._mixing.read)

    def inline(self, state: Travelling, after: Reading | None, compute: Compute) -> Travelling:
        """Read, compute, then mix and write in one pass."""
        if self._settings.reads_early:
            return self._inline_early(state, after, compute)
        assert state.blocks is not None
        mixing = self._mixing
        stream, u = read(state.blocks, mixing.read, self._settings.width)
        y, _ = compute(u)
        return Travelling(mix_and_write(stream, mixing.written(u, y), mixing, self._settings.kernel))

    def _inline_early(self, state: Travelling, after: Reading | None, compute: Compute) -> Travelling:
        """The next step's input is read of the mixed stream, and then the output is written. The last read sees all."""
        begun, u = self.begin(state)
        y, _ = compute(u)
        last = after is not None and after.last
        ahead = self.look_ahead(begun, None if last else after)
        out = self._written_out(ahead, self.written(u, y))
        if last:
            return Travelling(out.blocks)
        # A row of the pass outlives the mixed stream, whose memory it is a part of.
        return out if ahead.a is None else out._replace(u=ahead.a.clone())

    def begin(self, state: Travelling) -> tuple[Travelling, Tensor]:
        """The first step of a chunk has to read."""
        if state.u is not None:
            return state, state.u
        assert state.blocks is not None
        blocks, u = read(state.blocks, self._mixing.read, self._settings.width)
        return Travelling(blocks), u

    def written(self, u: Tensor, y: Tensor) -> Tensor:
        """A layer's output, or what it added to its input."""
        return self._mixing.written(u, y)

    def look_ahead(self, begun: Travelling, after: Reading | None) -> Ahead:
        """The pass."""
        s = self._settings
        ahead = look_ahead(_pending(begun), self._mixing, after, s.kernel)
        return read_ahead(ahead, after, s.width) if self.delays(after) else ahead

    def finish(self, ahead: Ahead, y: Tensor, after: Reading | None) -> Travelling:
        """An axpy, or where the output is delayed nothing."""
        kernel, mixing = self._settings.kernel, self._mixing
        if after is None:
            return self._written_out(ahead, y)
        if self.delays(after):
            return _travelling(write_later(ahead, y, mixing), ahead.a)
        stream, u = catch_up(ahead, y, mixing, after, kernel)
        return Travelling(None, None, u) if stream is None else _travelling(stream, u, ahead.through)

    def _written_out(self, ahead: Ahead, y: Tensor) -> Travelling:
        assert ahead.blocks is not None
        stream = write_back(ahead.blocks, y, self._mixing.write, self._settings.kernel)
        if not self._settings.reads_early:
            return Travelling(stream)
        # At the end of a chunk the next one's first step has to read what was before the write.
        return Travelling(stream, None, ahead.blocks if ahead.a is None else ahead.a)


class JoinedArithmetic(StaticArithmetic):
    """A step that leaves its pass to the next one of its layer (altup.mixing.join). Ahead: the state."""

    def reading(self, following: Reading | None) -> Reading:
        """With the next read through this step's mix."""
        mixing = self._mixing
        assert following is not None
        after = following.weights
        assert after is not None
        return Reading(mixing.read, through=mixing.mix[after] if isinstance(after, int) else after @ mixing.mix)

    def look_ahead(self, begun: Travelling, after: Reading | None) -> Any:
        """Nothing."""
        return begun

    def finish(self, ahead: Any, y: Tensor, after: Reading | None) -> Travelling:
        """An axpy of two outputs."""
        assert after is not None
        stream, u = join(_pending(ahead), ahead.through, y, self._mixing, after, self._settings.kernel)
        return _travelling(stream, u)


@dataclass(frozen=True)
class _TokensBegun:
    """The stream of a step, formed, and its weights."""

    stream: Tensor
    found: Connection


@dataclass(frozen=True)
class _TokensAhead:
    """What of a step needs no output: H = M X, g [K, T], and of a lagged one a and s (`token_mixing.look_ahead`)."""

    blocks: Tensor
    write: Tensor
    a: Tensor | None = None
    s: Tensor | None = None


class TokenArithmetic(StepArithmetic):
    """Weights computed for every token (altup.per_token, altup.token_mixing)."""

    def _connect(self, state: Travelling) -> _TokensBegun:
        s = self._settings
        assert state.blocks is not None
        assert s.variant.connection is not None
        stream = state.blocks
        if state.y is not None:
            assert state.weights is not None
            stream = token_mixing.write(stream, state.y, state.weights, s.kernel)
        x_KTD = token_mixing.by_token(stream, s.width)
        found: Connection = load_object(s.variant.connection)(x_KTD, self._coefficients, s.eps, s.kernel)
        return _TokensBegun(found.stream.view_as(stream), found)

    def _input(self, state: Travelling, begun: _TokensBegun) -> Tensor:
        stream, found = begun.stream, begun.found
        if self._settings.variant.lagged:
            return first_input(stream, self._settings.width) if state.u is None else state.u
        assert found.u is not None
        return found.u.to(stream.dtype).view(-1, *stream.shape[1:])

    def inline(self, state: Travelling, after: Reading | None, compute: Compute) -> Travelling:
        """All coefficients, read, compute, then mix and write in one pass."""
        kernel, begun = self._settings.kernel, self._connect(state)
        y, _ = compute(self._input(state, begun))
        if self._settings.next_block is not None:
            # The next input is read of the mixed stream, and then the output is written.
            return self._written_out(self.look_ahead(begun, after), y, after)
        writing = begun.found.writing()
        stream = token_mixing.mix_and_write(begun.stream, y, writing.mix, writing.write, kernel)
        if not self._settings.variant.lagged:
            return Travelling(stream)
        assert begun.found.read is not None
        return Travelling(stream, None, token_mixing.read(stream, begun.found.read, kernel))

    def begin(self, state: Travelling) -> tuple[Travelling | _TokensBegun, Tensor]:
        """Where the step's input is known, its weights can wait."""
        if self._settings.variant.lagged and state.u is not None:
            return state, state.u
        begun = self._connect(state)
        return begun, self._input(state, begun)

    def look_ahead(self, begun: Travelling | _TokensBegun, after: Reading | None) -> _TokensAhead:
        """All, or what the step's input does not need."""
        if isinstance(begun, Travelling):
            begun = self._connect(begun)
        stream, found, kernel = begun.stream, begun.found, self._settings.kernel
        writing = found.writing()
        if not self._settings.variant.lagged:
            blocks = stream if writing.mix is None else token_mixing.mix(stream, writing.mix, kernel)
            return _TokensAhead(blocks, writing.write)
        assert found.read is not None
        assert writing.mix is not None
        delayed = self._settings.next_block is not None
        blocks, a, s_T = token_mixing.look_ahead(stream, writing.mix, writing.write, found.read, delayed, kernel)
        return _TokensAhead(blocks, writing.write, a, s_T)

    def finish(self, ahead: _TokensAhead, y: Tensor, after: Reading | None) -> Travelling:
        """Writing is left to the next step, but for what ends a chunk."""
        if after is None:
            return self._written_out(ahead, y, after)
        u = self._next_input(ahead, y, after)
        return Travelling(None, None, u) if after.last else Travelling(ahead.blocks, y, u, ahead.write)

    def _written_out(self, ahead: _TokensAhead, y: Tensor, after: Reading | None) -> Travelling:
        stream = token_mixing.write(ahead.blocks, y, ahead.write, self._settings.kernel)
        return Travelling(stream, None, self._next_input(ahead, y, after))

    def _next_input(self, ahead: _TokensAhead, y: Tensor, after: Reading | None) -> Tensor | None:
        last = after is not None and after.last
        if ahead.a is None or ahead.s is None or (self._settings.next_block is not None and not last):
            return ahead.a
        return token_mixing.catch_up(ahead.a, y, ahead.s)


class DynamicArithmetic(StepArithmetic):
    """Gemma-3n's: predict, compute on the predicted block, correct (altup.dynamic). Its weights follow from the output,
    so it is always inline."""

    def inline(self, state: Travelling, after: Reading | None, compute: Compute) -> Travelling:
        """Around a branch, the layer's output is the branch's and its input."""
        assert state.blocks is not None
        s, c = self._settings, self._coefficients
        layer = Dynamic(s.block, s.eps, s.clip)
        with span("mix"):
            predicted = predict(state.blocks, c, layer)
        u = active(predicted, layer, s.width)
        y, _ = compute(u)
        with span("mix"):
            return Travelling(correct(predicted, u + y if s.level == "branch" else y, c, layer))


def arithmetic_of(settings: StepSettings, coefficients: nn.ParameterDict) -> StepArithmetic:
    """The kind that a variant's row asks for."""
    if settings.variant.weights is not None:
        kind: type[StepArithmetic] = JoinedArithmetic if settings.joins else StaticArithmetic
    else:
        kind = TokenArithmetic if settings.variant.connection is not None else DynamicArithmetic
    return kind(settings, coefficients)


def first_input(stream: Tensor, width: int) -> Tensor:
    """What the first step of a lagged stream reads: block 0 [S, B, D] of the stream [K*S, B, D] (DeepSeek-V4.1)."""
    return stream.chunk(width)[0]


def _pending(state: Travelling) -> Pending:
    assert state.blocks is not None
    outputs = tuple(y for y in (state.earlier, state.y) if y is not None)
    return Pending(state.blocks, outputs, state.weights)


def _travelling(stream: Pending, u: Tensor | None, through: Tensor | None = None) -> Travelling:
    *earlier, y = stream.outputs
    return Travelling(stream.blocks, y, u, stream.weights, earlier[0] if earlier else None, through)
