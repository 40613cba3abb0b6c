"""AdamW and its schedule, both Megatron's, with the AltUp coefficients in a group of their own."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.optimizer_config import ParamKey, ParamWithNamePredicate
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
from torch import Tensor

from altup_moe.config import OptimConfig, RunConfig
from altup_moe.parallel.parametrization import Factors, Kind, factors


def is_coefficient(name: str) -> bool:
    """Whether a Megatron parameter name is a coefficient: of an AltUp layer or of a strided one."""
    return ".coefficients." in name or ".sequence." in name


def group_overrides(config: RunConfig, name: str, parameter: Tensor) -> tuple[str, dict[str, float]]:
    """(group, what differs from the defaults there) of a parameter, by its Megatron name and what `build` marked it as.

    Coefficients: own learning rate, and no decay unless their variant asks for it (`model.altup_layer` marks them).
    Norms (vectors): no decay. Matrices: the defaults. With optim.parametrization mup each kind of matrix, also of those
    that compute a token's coefficients, and the last norm, has a rate and a decay by the model's size.
    """
    optim = config.optim
    kind: Kind = parameter.kind  # type: ignore[attr-defined]
    if is_coefficient(name):
        scaled = factors(kind, config)
        rates = _rates(optim, optim.coefficient_lr_mult * scaled.rate)
        group = "coefficients" if scaled == Factors() else f"{kind} coefficients"
        if getattr(parameter, "weight_decay", False):
            return f"decayed {group}", {**rates, **({} if scaled == Factors() else {"wd_mult": scaled.decay})}
        return group, {"wd_mult": 0.0, **rates}
    scaled, vector = factors(kind, config), parameter.dim() == 1
    if scaled == Factors():
        return ("vectors", {"wd_mult": 0.0}) if vector else ("matrices", {})
    return kind, {"wd_mult": 0.0 if vector else scaled.decay, **_rates(optim, scaled.rate)}


def _rates(optim: OptimConfig, factor: float) -> dict[str, float]:
    return {"max_lr": optim.learning_rate * factor, "min_lr": optim.min_learning_rate * factor}


def parameter_groups(config: RunConfig, named: Iterable[tuple[str, Tensor]]) -> dict[ParamKey, dict[str, float]]:
    """The groups of `group_overrides` as Megatron wants them told: a predicate each.

    Args:
        named: name and parameter of all of this rank's chunks.
    """

    def of(group: str) -> ParamKey:
        return ParamKey(
            with_name_predicate=ParamWithNamePredicate(
                group, lambda parameter, name: group_overrides(config, name, parameter)[0] == group
            )
        )

    found = dict(group_overrides(config, name, parameter) for name, parameter in named)
    return {of(group): overrides for group, overrides in found.items() if overrides}


def build_optimizer(chunks: list[DistributedDataParallel], config: RunConfig) -> Any:
    """Megatron's optimizer over this rank's chunks, and the hooks that its schedules call. Groups must exist."""
    o = config.optim
    named = [entry for chunk in chunks for entry in chunk.named_parameters()]
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=o.learning_rate,
            min_lr=o.min_learning_rate,
            weight_decay=o.weight_decay,
            adam_beta1=o.adam_beta1,
            adam_beta2=o.adam_beta2,
            adam_eps=o.adam_eps,
            clip_grad=o.clip_grad,
            bf16=config.train.precision == "bf16",
            params_dtype=torch.bfloat16 if config.train.precision == "bf16" else torch.float32,
            use_distributed_optimizer=config.parallel.distributed_optimizer,
        ),
        chunks,
        config_overrides=parameter_groups(config, named),
        use_gloo_process_groups=False,
    )
    _fuse(optimizer)
    connect_schedule(chunks, optimizer, config)
    return optimizer


def _fuse(optimizer: Any) -> None:
    """Have torch's AdamW (what Megatron takes without Transformer Engine and apex) update in one pass on a CPU.

    That is a quarter of the time, and Megatron does not let it be asked for. On a GPU, where the fused form wants its
    step counts on the device, the default stays.
    """
    if torch.cuda.is_available():
        return
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        inner = getattr(part, "optimizer", None)
        if isinstance(inner, torch.optim.AdamW):
            for group in inner.param_groups:
                group["fused"] = True


def connect_schedule(chunks: list[DistributedDataParallel], optimizer: Any, config: RunConfig) -> None:
    """Tell Megatron's pipeline schedules how gradients are scaled, held back and finalised."""
    for chunk in chunks:
        chunk.config.grad_scale_func = optimizer.scale_loss if optimizer is not None else None
        chunk.config.finalize_model_grads_func = finalize_model_grads
        if config.parallel.overlap_grad_reduce:
            no_sync = [c.no_sync for c in chunks]
            chunk.config.no_sync_func = no_sync if len(chunks) > 1 else no_sync[0]


def build_scheduler(optimizer: Any, config: RunConfig) -> OptimizerParamScheduler:
    """Linear warm-up, then cosine, warm-up-stable-decay, inverse square root or constant. In optimizer steps."""
    o, steps = config.optim, config.train.steps
    wsd = o.schedule == "wsd"
    # A run shorter than its warm-up ends inside it, on the same slope.
    total = max(steps if wsd or o.decay_steps is None else o.decay_steps, o.warmup_steps + 1)
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=o.learning_rate,
        min_lr=o.min_learning_rate,
        lr_warmup_steps=o.warmup_steps,
        lr_decay_steps=total,
        lr_decay_style={"wsd": "WSD", "inverse_sqrt": "inverse-square-root"}.get(o.schedule, o.schedule),
        start_wd=o.weight_decay,
        end_wd=o.weight_decay,
        wd_incr_steps=steps,
        wd_incr_style="constant",
        wsd_decay_steps=(o.decay_steps or max(1, steps // 10)) if wsd else None,
        lr_wsd_decay_style="cosine" if wsd else None,
    )


def rate_of_step(config: RunConfig, number: int) -> float:
    """Learning rate of the default group in a step, from 1, whatever optimizer there is."""
    group: dict[str, Any] = {"params": [], "lr": 0.0, "weight_decay": 0.0, "wd_mult": 1.0}
    scheduler = build_scheduler(SimpleNamespace(param_groups=[group]), config)
    scheduler.step(number)
    return float(group["lr"])


def learning_rate(optimizer: Any) -> float:
    """Learning rate of the default group, for the records."""
    for group in optimizer.param_groups:
        if group.get("default_config", False):
            return float(group["lr"])
    return float(optimizer.param_groups[0]["lr"])
