"""The table of backends: names, classes, and what a backend with an exchange of its own shuts."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
from torch import nn

from altup_moe.config import AltUpConfig, ConfigError, MoEConfig, OverlapConfig, RunConfig
from altup_moe.moe.backends import BACKENDS, Backend, defers_mixing, find_backend, unavailable_overlap, walks_two_steps
from tests.backends import installed

EXPERTS = RunConfig(moe=MoEConfig(num_experts=4))


def test_rows_are_names_of_the_configuration() -> None:
    assert set(BACKENDS) <= set(get_args(get_type_hints(MoEConfig)["backend"]))
    assert all(name == backend.name for name, backend in BACKENDS.items())


@pytest.mark.parametrize("name", [installed(name) for name in BACKENDS])
def test_a_row_names_a_module_class(name: str) -> None:
    assert issubclass(find_backend(name).load(), nn.Module)


def test_a_name_without_an_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(BACKENDS, "torch")
    with pytest.raises(ConfigError, match=r"moe\.backend='torch': .* megatron"):
        find_backend("torch")


@pytest.fixture
def blocking(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A run whose backend keeps its own exchange."""
    monkeypatch.setitem(BACKENDS, "tutel", Backend("tutel", "nowhere:Layer", stacked=False, allows_overlap=False))
    return replace(EXPERTS, moe=replace(EXPERTS.moe, backend="tutel"))


def test_mixing_goes_inline_and_the_run_says_so(blocking: RunConfig) -> None:
    assert defers_mixing(EXPERTS)
    assert unavailable_overlap(EXPERTS) is None
    assert not defers_mixing(blocking)
    assert unavailable_overlap(blocking) == "moe.backend tutel has an exchange of its own: mixing is inline"
    halves = replace(blocking, overlap=OverlapConfig(microbatch_halves=True))
    assert "halves of a micro-batch hide nothing" in str(unavailable_overlap(halves))
    # Nothing is said about what was not asked for.
    assert unavailable_overlap(replace(blocking, overlap=OverlapConfig(mixing="inline"))) is None


def test_coefficients_of_every_token_shut_windows(blocking: RunConfig) -> None:
    dynamic = replace(EXPERTS, altup=AltUpConfig(variant="dynamic"))
    assert not defers_mixing(dynamic)
    line = unavailable_overlap(dynamic)
    assert line == "altup.variant dynamic takes its coefficients from the layer's output: mixing is inline"
    assert unavailable_overlap(replace(dynamic, overlap=OverlapConfig(mixing="inline"))) is None
    assert unavailable_overlap(replace(dynamic, altup=AltUpConfig(width=1, variant="dynamic"))) is None
    mhc = replace(EXPERTS, altup=AltUpConfig(variant="mhc", level="branch"))
    assert defers_mixing(mhc)
    waits = "writing, the coefficients and the next read wait for each output, the rest is deferred"
    assert unavailable_overlap(mhc) == f"altup.variant mhc: {waits}"
    assert unavailable_overlap(replace(mhc, altup=replace(mhc.altup, variant="mhc_single_pass"))) is None
    # Each reason is given once.
    both = replace(blocking, altup=dynamic.altup, overlap=OverlapConfig(microbatch_halves=True))
    assert str(unavailable_overlap(both)) == f"{line}; moe.backend tutel has an exchange of its own: " + (
        "halves of a micro-batch hide nothing"
    )


def test_delayed_outputs_that_take_no_turns(blocking: RunConfig) -> None:
    delayed = replace(EXPERTS, altup=AltUpConfig(correct="delayed"))
    assert unavailable_overlap(delayed) is None
    assert walks_two_steps(delayed)
    assert not walks_two_steps(EXPERTS)
    for shut in (
        replace(delayed, moe=replace(delayed.moe, num_experts=0)),
        replace(delayed, overlap=OverlapConfig(mixing="inline")),
        replace(delayed, overlap=OverlapConfig(exchange="blocking")),
        replace(blocking, altup=delayed.altup),
    ):
        assert not walks_two_steps(shut)
        assert "altup.correct delayed: layers go one by one" in str(unavailable_overlap(shut))


def test_dense_models_have_their_own_windows(blocking: RunConfig) -> None:
    dense = replace(blocking, moe=replace(blocking.moe, num_experts=0))
    assert defers_mixing(dense)
    assert unavailable_overlap(dense) is None
