"""The expert contract: who computes the experts of an MoE layer, and what the rest of the trainer counts on.

A backend is one module and one row of `BACKENDS`. The row names a class, the whole feed-forward of a transformer layer:

    layer = Class(config, submodules, layer_number=None, pg_collection=groups, **others)
    output_SBD, None = layer(hidden_SBD)

`config` is an `AltUpTransformerConfig`, `submodules` Megatron's MoE spec with our router in it, `groups` the process
groups (ep, expt_tp, expt_dp, tp, ...). Under sequence parallelism S is this rank's part. What it must provide:

1.  Router record. A module `router` that is `moe.records.RecordsRouting`, with the parameter `router.weight` [E, d],
    and the buffer `router.expert_bias` [E] where `config.moe_router_enable_expert_bias`. `moe.router.CapacityRouter`,
    built as `submodules.router(config=config, pg_collection=groups)`, is all of it: hidden [S, B, d] and padding [S, B]
    -> (probabilities [tokens, E], bool map [tokens, E]) with top-k, capacity over the whole micro-batch, the routers'
    losses attached to the gradient, and counts, drops and losses recorded. Padding (a layer's `padding_mask` [B, S])
    has no route. Another gate must give the same numbers.
2.  Dispatch and combine. Every route goes to its expert's rank (expert e lives on expert rank e // (E / ranks)) and
    back to its token; dropless unless a capacity is set. Gradients of expert weights are those of the summed loss: a
    backend whose library scales them by the number of ranks divides.
3.  Experts. down(act(gate(x)) * up(x) * p), act by `config.activation` (`moe.activations`), p the route's probability.
    A module `experts`, found by that name, whose parameters are named and shaped in one of two ways (`parallel.names`
    has the rules; f is this rank's share of moe.ffn_hidden_size under expert-tensor parallelism):
      one by one  experts.local_experts.N.linear_fc1.weight [2f, d] (gate rows, then up rows), and
                  experts.local_experts.N.linear_fc2.weight [d, f]
      stacked     experts.fc1 [E_local * 2f, d], experts.fc2 [E_local * d, f]: the same, one expert after another
    `stacked` says which. Checkpoints, seeds and parity tests then hold unchanged. Experts without tokens have gradients
    of zero, not None, since the other data-parallel ranks wait for them.
    Parameters below `experts` are reduced over the expert data-parallel group (`parallel.compat` marks them).
4.  A shared expert, where `config.moe_shared_expert_intermediate_size`: `shared_experts`, as in Megatron's MoELayer.
5.  Overlap. With `allows_overlap`, the layer starts both exchanges, runs the deferred work that is posted
    (`overlap.deferred_work.run_posted`), lets the other half of the micro-batch compute
    (`overlap.alternate.yield_to_other`), and then waits. `overlap.expert_exchange.exchange_rows` does all of it.
    A library whose own exchange blocks has `allows_overlap` false: mixing is then inline, and the run says so. Under
    two-batch overlap each half of a micro-batch is a call of its own, and a layer keeps its state for each half.

A class derived from `moe.megatron_backend.OverlappedMoELayer` has 1, 2, 4 and 5, and needs only experts
(`moe.torch_backend`). `moe.deepspeed_backend` takes 1 and 4 from it, and replaces Megatron's dispatch and combine.
`tests/distributed/test_backends.py` runs the contract's tests over every row: gradients against the reference, 20
losses, checkpoints that move.
"""

from __future__ import annotations

from dataclasses import dataclass

from altup_moe.altup.lazy import load_object
from altup_moe.altup.variants import find_variant, stream_row
from altup_moe.config import ConfigError, RunConfig


@dataclass(frozen=True)
class Backend:
    """A row of the table: see the module's text.

    ``layer``: "module:Class", imported when a model is built, or the class itself.
    ``stacked``: how expert weights are named and shaped. ``allows_overlap``: whether other work runs while its
    exchanges are in flight.
    """

    name: str
    layer: str | type
    stacked: bool
    allows_overlap: bool

    def load(self) -> type:
        """The layer's class; imports the backend's library."""
        return load_object(self.layer)


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("megatron", "altup_moe.moe.megatron_backend:OverlappedMoELayer", stacked=False, allows_overlap=True),
        Backend("torch", "altup_moe.moe.torch_backend:StackedMoELayer", stacked=True, allows_overlap=True),
        Backend("deepspeed", "altup_moe.moe.deepspeed_backend:DeepSpeedMoELayer", stacked=False, allows_overlap=True),
        Backend("tutel", "altup_moe.moe.tutel_backend:TutelMoELayer", stacked=True, allows_overlap=True),
    )
}
"""Every backend by its name in `moe.backend`."""


def find_backend(name: str) -> Backend:
    """The row of a name. Raises ConfigError if there is none."""
    if name not in BACKENDS:
        raise ConfigError("moe.backend", name, f"this version has no adapter for it; {', '.join(BACKENDS)} would fit")
    return BACKENDS[name]


def defers_mixing(config: RunConfig) -> bool:
    """Whether mixing is deferred: the run asks for it, and the stream and the backend allow it."""
    return _deferrable(config) and (config.moe.num_experts == 0 or find_backend(config.moe.backend).allows_overlap)


def joins_steps(config: RunConfig) -> bool:
    """Whether the two steps of a layer share a pass over the stream."""
    a = config.altup
    return a.width > 1 and find_variant(a.variant).joins(a.level, a.correct) and defers_mixing(config)


def walks_two_steps(config: RunConfig) -> bool:
    """Whether two steps of the stream are under way at a time (`model.two_step_walk`): outputs are delayed, and there
    are exchanges to hide."""
    delayed = config.altup.correct == "delayed"
    return delayed and config.moe.num_experts > 0 and config.overlap.exchange == "async" and defers_mixing(config)


def _deferrable(config: RunConfig) -> bool:
    """Whether mixing is to be deferred, and not all of it needs the output."""
    row = stream_row(config.altup.variant, config.altup.width)
    return config.overlap.mixing == "deferred" and row.deferrable


def unavailable_overlap(config: RunConfig) -> str | None:
    """One line on what `overlap` asks for and the stream or the backend does not allow. None if it allows all."""
    shut = []
    if config.overlap.mixing == "deferred" and not _deferrable(config) and config.altup.width > 1:
        shut.append(
            f"altup.variant {config.altup.variant} takes its coefficients from the layer's output: mixing is inline"
        )
    waits = find_variant(config.altup.variant).waits if config.altup.width > 1 else ""
    if waits and config.overlap.mixing == "deferred":
        shut.append(f"altup.variant {config.altup.variant}: {waits} wait for each output, the rest is deferred")
    if config.moe.num_experts > 0 and not find_backend(config.moe.backend).allows_overlap:
        shut += _asked_of_backend(config)
    if config.altup.correct == "delayed" and not walks_two_steps(config):
        needs = "moe.num_experts, overlap.mixing deferred and overlap.exchange async"
        shut.append(f"altup.correct delayed: layers go one by one; two take turns with {needs}")
    return "; ".join(shut) or None


def _asked_of_backend(config: RunConfig) -> list[str]:
    asked = [
        what
        for what, wanted in (
            ("mixing is inline", _deferrable(config)),
            ("halves of a micro-batch hide nothing", config.overlap.microbatch_halves),
        )
        if wanted
    ]
    return [f"moe.backend {config.moe.backend} has an exchange of its own: {', '.join(asked)}"] if asked else []
