"""Which group of the optimizer a parameter belongs to, by its name: of a model that has all kinds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from altup_moe.config import AltUpConfig, MoEConfig, OptimConfig, RunConfig
from altup_moe.parallel.parameter_mapping import Shard, pieces
from altup_moe.parallel.parameter_names import local_names
from altup_moe.parallel.parametrization import kind_of
from altup_moe.train.optim import group_overrides

OPTIM = OptimConfig(learning_rate=2e-3, min_learning_rate=2e-4, coefficient_lr_mult=3.0)


def groups(variant: str) -> dict[str, set[str]]:
    """Last parts of the global names in each group; says what differs there from the defaults."""
    config = RunConfig(altup=AltUpConfig(width=4, variant=variant), moe=MoEConfig(num_experts=2, layer_freq=2))
    found: dict[str, set[str]] = {}
    for name in local_names(config, range(2), True, True, 2):
        (piece, *_) = pieces(name, 0, Shard(), config)
        parameter = torch.empty(piece.shape, device="meta")
        parameter.kind = kind_of(piece.name, config)  # type: ignore[attr-defined]  # as `bare_chunks` marks it
        group, overrides = group_overrides(replace(config, optim=OPTIM), name, parameter)
        assert overrides.get("wd_mult", 1.0) == (1.0 if group == "matrices" else 0.0)
        assert overrides.get("max_lr") == (pytest.approx(6e-3) if group == "coefficients" else None)
        found.setdefault(group, set()).add(
            piece.name.removesuffix(".weight").split(".", 3 if "layers" in name else 1)[-1]
        )
    return found


def test_a_dynamic_stream_decays_its_ends_alone() -> None:
    found = groups("dynamic")
    names = ("router_norm", "router", "prediction", "correction")
    assert found["coefficients"] == {f"altup.{name}" for name in names}
    ends = {f"{end}.{n}" for end in ("altup_projections", "altup_unembed_projections") for n in range(3)}
    assert ends <= found["matrices"]
    assert found["vectors"] == {"norm", "input_layernorm", "post_attention_layernorm"}


@pytest.mark.parametrize("variant", ["mhc", "gated_residual"])
def test_what_computes_coefficients_of_a_token_has_mups_rate(variant: str) -> None:
    optim = replace(OPTIM, parametrization="mup", mup_base_hidden_size=64)
    config = RunConfig(altup=AltUpConfig(width=4, variant=variant, level="branch"), optim=optim)
    wider = config.model.hidden_size / 64
    rates: dict[str, float] = {}
    for name in local_names(config, range(1), True, True, 0):
        (piece, *_) = pieces(name, 0, Shard(), config)
        parameter = torch.empty(piece.shape, device="meta")
        parameter.kind = kind_of(piece.name, config)  # type: ignore[attr-defined]
        if ".coefficients." in name:
            rates[name.rpartition(".")[2]] = group_overrides(config, name, parameter)[1]["max_lr"]
    networks = {"project", "inject", "gate_down", "gate_up"} & rates.keys()
    assert networks
    for name, rate in rates.items():
        assert rate == pytest.approx(6e-3 / (wider if name in networks else 1))


@pytest.mark.parametrize(("variant", "names"), [("altup", {"predict", "correct"}), ("hc", {"read", "mix", "write"})])
def test_coefficients_are_a_group(variant: str, names: set[str]) -> None:
    assert groups(variant)["coefficients"] == {f"altup.{name}" for name in names}
