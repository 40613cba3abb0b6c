"""Packages that a backend, an engine or fused layers need, and what DeepSpeed's engine does not train."""

from __future__ import annotations

import importlib.metadata

import pytest

from altup_moe.config import ConfigError
from altup_moe.config.checks import check_config
from tests.unit.config.test_config_checks import EXPERTS, T5, run

PARTS = {"deepspeed": ["deepspeed"], "tutel": ["tutel", "tutel_custom_kernel"]}


@pytest.mark.parametrize("backend", PARTS)
def test_a_backend_whose_package_is_missing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found without importing it, whichever part is missing; models without experts do not ask."""
    there: set[str] = set()
    monkeypatch.setattr("altup_moe.config.packages.find_spec", lambda name: name in there or None)
    for part in PARTS[backend]:
        with pytest.raises(ConfigError, match=r"is not installed; .*megatron would fit") as error:
            check_config(run(**EXPERTS, moe__backend=backend), 1)
        assert (error.value.key, error.value.value) == ("moe.backend", backend)
        there.add(part)
    monkeypatch.setattr("importlib.metadata.version", lambda name: {"deepspeed": "0.19.8"}.get(name, "0"))
    check_config(run(**EXPERTS, moe__backend=backend), 1)
    there.clear()
    check_config(run(moe__backend=backend), 1)


VERSIONS = {
    "0.19.3": False, "0.19.4": True, "0.19.4+cu12": True, "0.19.10": True, "0.20": False, "0.20.0rc1": False,
    "1.0": False, "0.9.9": False,
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
def test_a_backend_whose_package_is_too_old_or_too_new(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altup_moe.config.packages.find_spec", lambda name: name)
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    wanted = run(**EXPERTS, moe__backend="deepspeed")
    if VERSIONS[version]:
        return check_config(wanted, 1)
    with pytest.raises(ConfigError, match=r"is installed, .*deepspeed>=0\.19\.4,<0\.20.*megatron would fit") as error:
        check_config(wanted, 1)
    assert version in str(error.value)


def test_a_package_without_a_version_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("altup_moe.config.packages.find_spec", lambda name: name)
    monkeypatch.setattr("importlib.metadata.version", version)
    check_config(run(**EXPERTS, moe__backend="deepspeed"), 1)


ZERO = {"train__engine": "deepspeed"}


@pytest.fixture
def deepspeed_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altup_moe.config.packages.find_spec", lambda name: name)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.19.8")


@pytest.mark.parametrize(
    ("values", "world"),
    [
        (ZERO, 1),
        ({**ZERO, "parallel__zero_stage": 3}, 2),
        ({**ZERO, **EXPERTS, "parallel__zero_stage": 2, "parallel__expert": 2, "parallel__tensor": 2}, 4),
        ({**ZERO, "parallel__context": 2}, 2),
        ({**ZERO, "train__recompute": "full"}, 1),
        ({**ZERO, "train__recompute": "full", "parallel__zero_stage": 2, "overlap__mixing": "inline"}, 1),
        ({**ZERO, "parallel__zero_stage": 3, "altup__width": 1, "train__recompute": "full"}, 1),
        ({**ZERO, "parallel__zero_stage": 3, "altup__width": 1, "train__precision": "bf16"}, 1),
        ({**ZERO, **EXPERTS, "parallel__zero_stage": 2, "train__precision": "bf16"}, 1),
    ],
)
@pytest.mark.usefixtures("deepspeed_is_there")
def test_what_deepspeed_trains(values: dict[str, object], world: int) -> None:
    check_config(run(**values), world)


@pytest.mark.parametrize(
    ("values", "world", "key", "says"),
    [
        ({"parallel__zero_stage": 2}, 1, "parallel.zero_stage", "needs train.engine deepspeed; 1 would fit"),
        ({**ZERO, "parallel__zero_stage": 0}, 1, "parallel.zero_stage", "clipped wrongly.*1, 2, 3 would fit"),
        ({**ZERO, "parallel__pipeline": 2}, 2, "parallel.pipeline", "not proved equal in a pipeline; 1 would fit"),
        ({**ZERO, "parallel__distributed_optimizer": True}, 1, "parallel.distributed_optimizer", "false would fit"),
        ({**ZERO, "parallel__overlap_grad_reduce": True}, 1, "parallel.overlap_grad_reduce", "false would fit"),
        ({**ZERO, **EXPERTS, "parallel__zero_stage": 3}, 1, "parallel.zero_stage", "not with experts; 1, 2 would fit"),
        (
            {**ZERO, "parallel__zero_stage": 3, "train__precision": "bf16"},
            1,
            "parallel.zero_stage",
            "train.precision fp32",
        ),
        ({**ZERO, "parallel__zero_stage": 3, "train__loss_chunk": 8}, 1, "train.loss_chunk", "null would fit"),
        (
            {**ZERO, "parallel__zero_stage": 2, "train__recompute": "full"},
            1,
            "train.recompute",
            r"overlap.mixing inline or parallel.zero_stage 1 \(2\); none, selective would fit",
        ),
        (
            {**ZERO, **T5, "parallel__zero_stage": 2, "train__recompute": "selective"},
            1,
            "train.recompute",
            r"with model.arch t5 needs parallel.zero_stage 1 \(2\); none would fit",
        ),
    ],
)
@pytest.mark.usefixtures("deepspeed_is_there")
def test_what_deepspeed_does_not(values: dict[str, object], world: int, key: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        check_config(run(**values), world)
    assert caught.value.key == key


def test_an_engine_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altup_moe.config.packages.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="is not installed; pip install 'deepspeed>=") as caught:
        check_config(run(**ZERO), 1)
    assert (caught.value.key, caught.value.value) == ("train.engine", "deepspeed")
    check_config(run(), 1)


@pytest.mark.parametrize("version", ["0.18.9", "0.19.3", "0.20.0", "1.0"])
def test_an_engine_of_another_version(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altup_moe.config.packages.find_spec", lambda name: name)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    with pytest.raises(ConfigError, match=f"{version} is installed, .*megatron would fit"):
        check_config(run(**ZERO), 1)


def test_fused_layers_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altup_moe.config.packages.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"transformer_engine is not installed; .*, or off would fit") as caught:
        check_config(run(train__transformer_engine="on"), 1)
    assert (caught.value.key, caught.value.value) == ("train.transformer_engine", "on")
    check_config(run(train__transformer_engine="auto"), 1)
