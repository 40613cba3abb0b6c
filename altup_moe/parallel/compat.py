"""Differences between the megatron-core versions that we run on (0.16.1 and 0.19.2), and mends of their faults.

Everything that depends on a version stands here, so that the rest reads as if there were one.
"""

from __future__ import annotations

import functools
import inspect
import logging
from typing import Any

import torch
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor, nn

from altup_moe.parallel.patches import original, replace


@functools.cache
def mend_megatron() -> None:
    """Faults of megatron-core that do not depend on the model; once a process, before a model is built."""
    te_general_gemm = "megatron.core.transformer.moe.moe_utils:te_general_gemm"
    if original(te_general_gemm) is None:
        replace(te_general_gemm, None)
    _clip_in_place()
    _permute_without_waiting()
    # It also warns of every feed-forward class that is not one of its own, on every layer.
    logging.getLogger("megatron.core.transformer.transformer_layer").addFilter(
        lambda line: not line.getMessage().startswith("Unknown MLP type")
    )


def _clip_in_place() -> None:
    """Without Transformer Engine and apex gradients are clipped by way of a copy of each; the same values need none."""

    def multiply(chunk_size: int, noop_flag: Any, tensor_lists: Any, scale: float) -> None:
        for source, target in zip(*tensor_lists, strict=True):
            torch.mul(source, scale, out=target)

    name = "megatron.core.optimizer.clip_grads:multi_tensor_scale_impl"
    if getattr(original(name), "__name__", "") == "local_multi_tensor_scale":
        replace(name, multiply)


def _permute_without_waiting() -> None:
    """0.16.1 selects routes by a mask: a GPU is asked twice how many there are. 0.19.2 sorts; this counts them."""
    name = "megatron.core.transformer.moe.token_dispatcher:permute"
    theirs = original(name)
    if "masked_select" not in theirs.__code__.co_names:
        return

    @functools.wraps(theirs)
    def permute(
        tokens: Tensor,
        routing_map: Tensor,
        probs: Tensor | None = None,
        num_out_tokens: Any = None,
        fused: bool = False,
        drop_and_pad: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        if fused or drop_and_pad or num_out_tokens is None:
            found: tuple[Tensor, Tensor | None, Tensor] = theirs(
                tokens, routing_map, probs, num_out_tokens, fused, drop_and_pad
            )
            return found
        routes = routes_in_order(routing_map, int(num_out_tokens))
        rows = routes % routing_map.shape[0]
        picked = None if probs is None else probs.T.reshape(-1).index_select(0, routes)
        return tokens.index_select(0, rows), picked, rows

    replace(name, permute)


def routes_in_order(map_TE: Tensor, count: int) -> Tensor:
    """Where a bool map, transposed and flat, is True: `map_TE.T.flatten().nonzero()`, whose number `count` is known."""
    flat = map_TE.T.reshape(-1)
    # Each route's place among the routes; what is none goes to one place more, which is cut off.
    places = torch.where(flat, flat.cumsum(0) - 1, count)
    numbers = torch.arange(flat.numel(), device=flat.device)
    return numbers.new_zeros(count + 1).scatter_(0, places, numbers)[:count]


def mlp_submodules(mlp_spec: Any) -> Any:
    """The submodules of a feed-forward's spec: a ModuleSpec (0.16.1) or a partial of the class (0.19.2)."""
    if isinstance(mlp_spec, functools.partial):
        return mlp_spec.keywords["submodules"]
    return mlp_spec.submodules


def with_moe_layer(mlp_spec: Any, layer: type, groups: Any) -> Any:
    """An MoE spec with `layer` in the place of Megatron's own, which is given the process groups.

    0.16.1 hands them only to its own class, so they stand in the spec; 0.19.2 asks for a partial of the class.
    """
    if isinstance(mlp_spec, functools.partial):
        return functools.partial(layer, *mlp_spec.args, **{**mlp_spec.keywords, "pg_collection": groups})
    return ModuleSpec(module=layer, submodules=mlp_spec.submodules, params={"pg_collection": groups})


def batch_on_context_rank(batch: dict[str, Any]) -> dict[str, Any]:
    """Megatron's zigzag part of a batch ([B, S] tensors by name) for this context-parallel rank.

    0.19.2 also wants to be told that the split is not its hybrid one.
    """
    from megatron.core.utils import get_batch_on_this_cp_rank

    hybrid = "is_hybrid_cp" in inspect.signature(get_batch_on_this_cp_rank).parameters
    return get_batch_on_this_cp_rank(batch, **({"is_hybrid_cp": False} if hybrid else {}))


def mark_expert_parameters(module: nn.Module) -> None:
    """Send every expert's gradients through the expert data-parallel group.

    0.16.1 marks expert weights for the dense group (``allreduce = True``) when there is one expert-parallel rank. Under
    TP > 1 with unsharded experts each tensor rank then holds a replica that sees other tokens, and the dense
    group never adds their gradients: replicas drift apart silently. The expert data-parallel group is
    right in every layout, and equals the dense one where there is no tensor parallelism.
    """
    for name, parameter in module.named_parameters():
        if ".experts." in name:
            parameter.allreduce = False  # type: ignore[attr-defined]
