"""The table of stream variants. A row says everything that the trainer asks about a variant; it imports no torch.

For a token's state X in R^{K x d} and a layer F that computes on one block of width d:

    u  = r X                    read
    y  = F(u)                   compute
    X' = M X + g (x) y          mix and write

F is a whole Transformer layer, its own residual included (altup.level layer), or one of its two branches, attention or
feed-forward, without a residual (altup.level branch): then a layer is two such steps.

A row names the learned coefficients of a layer and the function that turns them into (r, M, g). Configuration checks,
initial weights, parameter names, layers, the optimizer, growing and planning read the row and name no variant.

To add a variant, add a row here and its function to a module of this package (`altup_moe.altup.static`,
`altup_moe.altup.per_token`). A program of your own adds a row with `altup_moe.api.register_variant`
(examples/own_variant.py).
`tests/distributed/test_new_variant.py` adds one in a test and trains it on several ranks.
Source: Baykal et al., AltUp, arXiv 2301.13310.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from altup_moe.altup import step_costs
from altup_moe.altup.coefficients import Coefficient, gate_rank
from altup_moe.altup.lazy import load_object

if TYPE_CHECKING:
    from torch import Tensor

    from altup_moe.altup.static import Mixing

Level = Literal["layer", "branch"]
"""What a step of the stream stands around (`altup.level`)."""
Correct = Literal["next", "delayed"]
"""Which step reads what a step has written (`altup.correct`): the next one, or the one after it."""
STATIC = "altup_moe.altup.static:"
PER_TOKEN = "altup_moe.altup.per_token:"
WIDENING = "altup_moe.altup.widening:"
REFERENCE = "altup_moe.model.reference.streams:"
TOKEN_REFERENCE = "altup_moe.model.reference.token_streams:"


def _no_products(width: int, hidden_size: int) -> int:
    return 0


@dataclass(frozen=True)
class StreamVariant:
    """A row of the table. Texts of the form "module:name" are imported where they are used; a function may stand there.

    Args:
        name: its `altup.variant`.
        coefficients: learned coefficients of a layer by name.
        weights: function (j, coefficients) -> `altup.static.Mixing`. None: the weights differ from token to token.
        branch_weights: `weights` where F is a branch, if it is not the same step with F's residual added.
        delayed_weights: `weights` around a layer where outputs are delayed (altup.correct), if they are others.
        masked: where outputs are delayed, the coefficient [K] of which the entry of the block that the next step reads
            counts as 0: nothing is written there. None: the next step reads more than one block, all of them before the
            output is written.
        connection: function (X, coefficients, eps) -> `altup.per_token.Connection`, for weights of every token.
        lagged: whether the read that a connection computes is that of the next step.
        head: learned parameters that collapse the blocks of a recycled stream before the final norm, by name.
        collapse: the function that does: coefficients -> weights [K] of a sum over the blocks, or for weights of every
            token (X [K, T, D], coefficients, eps) -> [T, D]. None: the blocks are summed.
        waits: what of its mixing waits for the output, where that is more than an axpy; for a line at a run's start.
        deepens: whether a layer can be added that leaves the stream as it is (growing).
        levels: values of altup.level at which it is defined.
        reference: function (AltUpMoEConfig, j) -> `model.reference.streams.Stream` of the reference model. The default
            is built from `weights`; a row of its own is an independent oracle.
        blocks: whether K blocks travel through the layers. False: the wide embedding is summed before the first layer.
        projections: whether learned matrices make the blocks of the embedding and bring them back (`altup.dynamic`).
        clips: whether altup.coef_clip applies.
        selects: whether a step has a block of its own, which altup.select chooses; else all its steps are alike.
        architectures: values of model.arch that carry it.
        planned: whether the planner has arithmetic for it.
        widening: function (coefficient, value, times, j, summed) -> the coefficient for `times` as many blocks
            (`altup.widening`). None: growing adds layers, but no blocks.
        copies: how a grown stream holds an old block: each copy equals it, or the copies sum to it.
        coefficient_products: (K, d) -> multiply-adds a token and step that compute the coefficients.
        costs: (K, d, half, deferred) -> what else a step costs, for planning weights of every token. None: they are
            static, or not planned.
        head_costs: (K, d, half) -> what the learned end of the stream keeps; with `projections` each of both ends.
    """

    name: str
    coefficients: Mapping[str, Coefficient]
    weights: str | Callable[[int, Mapping[str, Tensor]], Mixing] | None = None
    branch_weights: str | Callable[[int, Mapping[str, Tensor]], Mixing] | None = None
    delayed_weights: str | Callable[[int, Mapping[str, Tensor]], Mixing] | None = None
    masked: str | None = None
    connection: str | Callable[..., Any] | None = None
    lagged: bool = False
    head: Mapping[str, Coefficient] = field(default_factory=dict)
    collapse: str | Callable[..., Tensor] | None = None
    waits: str = ""
    deepens: bool = True
    levels: tuple[Level, ...] = ("layer", "branch")
    reference: str = REFERENCE + "static_stream"
    blocks: bool = True
    projections: bool = False
    clips: bool = False
    selects: bool = True
    architectures: tuple[str, ...] = ("gpt", "t5")
    planned: bool = True
    widening: str | None = None
    copies: Literal["equal", "summed"] = "equal"
    coefficient_products: Callable[[int, int], int] = _no_products
    costs: Callable[[int, int, bool, bool], step_costs.TokenStep] | None = None
    head_costs: Callable[[int, int, bool], step_costs.Kept] | None = None

    @property
    def per_token(self) -> bool:
        """Whether the weights differ from token to token."""
        return self.blocks and self.weights is None

    @property
    def deferrable(self) -> bool:
        """Whether part of the mixing can be done before the output is known."""
        return self.weights is not None or self.connection is not None or not self.blocks

    @property
    def delays(self) -> bool:
        """Whether outputs can be delayed (altup.correct): the next read is known before they are."""
        return self.weights is not None or self.lagged

    def joins(self, level: Level, correct: Correct) -> bool:
        """Whether the two steps of a layer share a pass when mixing is deferred (`altup.mixing.join`)."""
        return level == "branch" and self.weights is not None and correct == "next"

    def reads_early(self, correct: Correct) -> bool:
        """Whether the stream after a step does not tell what the next one reads: a step computes it, or it is read
        before the step's output is written."""
        return self.lagged or (correct == "delayed" and self.weights is not None and self.masked is None)

    @property
    def collapses(self) -> bool:
        """Whether a recycled stream's end has learned parameters."""
        return bool(self.head)

    def mixing(
        self, block: int, coefficients: Mapping[str, Tensor], level: Level = "layer", next_block: int | None = None
    ) -> Mixing:
        """The weights (r, M, g) of a layer, or of one of its branches, that computes on block `block`.

        Args:
            next_block: where outputs are delayed, the block that the next step computes on.
        """
        if self.weights is None:
            raise ValueError(f"altup.variant {self.name} has no weights that are the same for all tokens")
        if next_block is not None and self.masked is not None:
            masked = load_object(STATIC + "masked")(coefficients[self.masked], next_block)
            coefficients = {**coefficients, self.masked: masked}
        if level == "branch" and self.branch_weights is not None:
            return load_object(self.branch_weights)(block, coefficients)
        delayed = level == "layer" and next_block is not None and self.delayed_weights is not None
        mixing: Mixing = load_object(self.delayed_weights if delayed else self.weights)(block, coefficients)
        return mixing.around_branch() if level == "branch" else mixing


PREDICT_AND_CORRECT = {"predict": Coefficient(("K", "K"), "identity"), "correct": Coefficient(("K",), "ones")}

WIDE_RESIDUAL = {"read": Coefficient(("K",), "mean_logit"), "write": Coefficient(("K",), "spread")}
MANIFOLD = {
    "project": Coefficient(("K*(K+2)", "K*D"), "normal", kind="router"),
    "read_bias": Coefficient(("K",), "zeros"),
    "write_bias": Coefficient(("K",), "zeros"),
    "mix_bias": Coefficient(("K", "K"), "zeros"),
    "scale": Coefficient((3,), "zeros"),
}
READ_HEAD = {
    "project": Coefficient(("K", "K*D"), "normal", kind="router"),
    "read_bias": Coefficient(("K",), "zeros"),
    "scale": Coefficient((1,), "zeros"),
}
GATE = {
    "norm": Coefficient(("K*D",), "ones"),
    "gate_down": Coefficient(("R", "K*D"), "normal", kind="hidden"),
    "gate_up": Coefficient(("K*D", "R"), "normal", kind="hidden"),
}
ALL_BUT_THE_WRITE = "all but the weights of what is written"
PER_BRANCH: Any = {
    "levels": ("branch",),
    "architectures": ("gpt",),
    "deepens": False,
    "selects": False,
}

VARIANTS: dict[str, StreamVariant] = {
    row.name: row
    for row in (
        StreamVariant(
            "altup",
            PREDICT_AND_CORRECT,
            STATIC + "altup",
            masked="correct",
            reference=REFERENCE + "altup_stream",
            widening=WIDENING + "widened_prediction",
        ),
        StreamVariant(
            "gemma",
            PREDICT_AND_CORRECT,
            STATIC + "gemma",
            STATIC + "gemma_around_branches",
            STATIC + "gemma_of_change",
            reference=REFERENCE + "gemma_stream",
            widening=WIDENING + "widened_prediction",
        ),
        StreamVariant(
            "round_robin",
            {"read": Coefficient(("K",), "one_hot"), "scale": Coefficient((1,), "ones", neutral="zeros")},
            STATIC + "round_robin",
            STATIC + "round_robin",  # it adds, whatever the level
            reference=REFERENCE + "round_robin_stream",
            widening=WIDENING + "widened_reading",
            copies="summed",
        ),
        StreamVariant(
            "hc",
            {
                "read": Coefficient(("K",), "one_hot"),
                "mix": Coefficient(("K", "K"), "identity"),
                "write": Coefficient(("K",), "ones"),
            },
            STATIC + "hyper_connections",
            reference=REFERENCE + "hyper_connections_stream",
            widening=WIDENING + "widened_connection",
        ),
        StreamVariant(
            "dynamic",
            {
                "router_norm": Coefficient(("D",), "ones"),
                "router": Coefficient(("K", "D"), "normal"),
                "prediction": Coefficient(("K*K", "K"), "zeros"),
                "correction": Coefficient(("K", "K"), "zeros"),
            },
            reference=REFERENCE + "dynamic_stream",
            projections=True,
            clips=True,
            architectures=("gpt",),
            costs=step_costs.dynamic_step,
            head_costs=step_costs.projection_end,
            # The router looks at two blocks, and its K numbers make K^2 + K coefficients.
            coefficient_products=lambda k, d: 2 * k * d + k**3 + k**2,
        ),
        StreamVariant(
            "wide_residual",
            WIDE_RESIDUAL,
            STATIC + "wide_residual",
            head={"read": Coefficient(("K",), "mean_logit")},
            collapse=STATIC + "wide_residual_end",
            reference=TOKEN_REFERENCE + "wide_residual_stream",
            selects=False,
            architectures=("gpt",),
        ),
        StreamVariant(
            "wide_residual_kept",
            {**WIDE_RESIDUAL, "keep": Coefficient(("K",), "zeros")},
            STATIC + "kept_wide_residual",
            deepens=False,
            head={"read": Coefficient(("K",), "mean_logit")},
            collapse=STATIC + "wide_residual_end",
            reference=TOKEN_REFERENCE + "wide_residual_stream",
            selects=False,
            architectures=("gpt",),
        ),
        StreamVariant(
            "mhc",
            MANIFOLD,
            connection=PER_TOKEN + "mhc",
            waits="writing, the coefficients and the next read",
            head=READ_HEAD,
            collapse=PER_TOKEN + "read_collapse",
            reference=TOKEN_REFERENCE + "manifold_stream",
            costs=step_costs.manifold_step,
            head_costs=step_costs.read_end,
            **PER_BRANCH,
            coefficient_products=lambda k, d: k * d * k * (k + 2),
        ),
        StreamVariant(
            "mhc_single_pass",
            MANIFOLD,
            connection=PER_TOKEN + "mhc_single_pass",
            lagged=True,
            reference=TOKEN_REFERENCE + "single_pass_stream",
            costs=step_costs.single_pass_step,
            **PER_BRANCH,
            coefficient_products=lambda k, d: k * d * k * (k + 2),
        ),
        StreamVariant(
            "independent_hc",
            {
                "project": Coefficient(("2*K", "K*D"), "normal", kind="router"),
                "read_bias": Coefficient(("K",), "mean_logit"),
                "write_bias": Coefficient(("K",), "zeros"),
                "scale": Coefficient((2,), "zeros"),
            },
            connection=PER_TOKEN + "independent_hc",
            waits=ALL_BUT_THE_WRITE,
            head={**READ_HEAD, "read_bias": Coefficient(("K",), "mean_logit")},
            collapse=PER_TOKEN + "read_collapse",
            reference=TOKEN_REFERENCE + "independent_stream",
            costs=step_costs.independent_step,
            head_costs=step_costs.read_end,
            **PER_BRANCH,
            coefficient_products=lambda k, d: 2 * k * k * d,
        ),
        StreamVariant(
            "gated_residual",
            {**GATE, "inject": Coefficient(("K", "K*D"), "normal", kind="router")},
            connection=PER_TOKEN + "gated_residual",
            waits=ALL_BUT_THE_WRITE,
            head=GATE,
            collapse=PER_TOKEN + "gated_collapse",
            reference=TOKEN_REFERENCE + "gated_stream",
            costs=step_costs.gated_step,
            head_costs=step_costs.gated_end,
            **PER_BRANCH,
            coefficient_products=lambda k, d: 2 * k * d * gate_rank(d) + k * k * d,
        ),
        StreamVariant("sum", {}, blocks=False, selects=False),
    )
}
"""Every variant by its name in `altup.variant`, in the order in which the help lists them."""


PLAIN = StreamVariant("plain", {}, STATIC + "plain", selects=False, architectures=("gpt",))
"""The plain residual stream, one block, without coefficients. No altup.variant: altup.width 1 is it. Its layers are
Megatron's own, but where outputs are delayed, which makes them steps."""


def stream_row(name: str, width: int) -> StreamVariant:
    """The row of a stream of `width` blocks: that of altup.variant `name`, or of one block `PLAIN`."""
    return PLAIN if width == 1 else find_variant(name)


def find_variant(name: str) -> StreamVariant:
    """The row of a name. Raises ValueError if there is none."""
    if name not in VARIANTS:
        raise ValueError(
            f"altup.variant {name!r} has no row in altup_moe.altup.variants; there are {', '.join(VARIANTS)}"
        )
    return VARIANTS[name]


def selected_block(step: int, width: int, select: str) -> int:
    """Block that step `step` (from 0) computes on: s mod K (`alternating`) or always 0 (`same`).

    Steps are layers, or with altup.level branch their branches one after another (`altup.shape.step_of`).
    """
    return step % width if select == "alternating" else 0


def next_block(step: int, width: int, select: str, correct: str) -> int | None:
    """Where outputs are delayed, the block that the step after step `step` computes on; else None."""
    return selected_block(step + 1, width, select) if correct == "delayed" else None
