"""A grown model puts out what the source does, in every combination; its gradients are what its rules say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from altup_moe.altup import widening
from altup_moe.checkpoint.grow.checkpoint import Grown, grow_checkpoint
from altup_moe.checkpoint.grow.checks import check_growth
from altup_moe.checkpoint.grow.rules import Growth, rule_of
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.tensors import load_tensor
from altup_moe.config import RunConfig
from altup_moe.parallel.parameter_names import global_shapes
from tests.unit.checkpoint.models_for_tests import STEP, difference, reference, save, tiny, tokens

Sections = dict[str, dict[str, Any]]

TIED = {"share_embeddings_and_output_weights": True}
EXPERTS = {"num_experts": 4, "ffn_hidden_size": 24, "layer_freq": 2}
SIGMOID = {"score_function": "sigmoid", "expert_bias_update_rate": 0.01}
PARTIAL = {"partial": True, "num_experts": 8, "top_k": 1, "ffn_hidden_size": 8, "layer_freq": 1}

CASES: dict[str, tuple[Sections, Sections]] = {
    "altup 2 to 4": ({}, {"altup": {"width": 4}}),
    "altup 2 to 8": ({}, {"altup": {"width": 8}}),
    "altup tied": ({"model": TIED}, {"altup": {"width": 4}}),
    "gemma 2 to 4": ({"altup": {"variant": "gemma"}}, {"altup": {"width": 4}}),
    "gemma same": ({"altup": {"variant": "gemma", "select": "same"}}, {"altup": {"width": 8}}),
    "altup same": ({"altup": {"select": "same"}}, {"altup": {"width": 8}}),
    "wide tables": ({"altup": {"recycled": False}}, {"altup": {"width": 4}}),
    "wide tables tied": ({"altup": {"recycled": False}, "model": TIED}, {"altup": {"width": 4}}),
    "gemma wide": ({"altup": {"recycled": False, "variant": "gemma"}}, {"altup": {"width": 8}}),
    "plain to altup": ({"altup": {"width": 1}}, {"altup": {"width": 4}}),
    "plain to gemma same": ({"altup": {"width": 1}}, {"altup": {"width": 4, "variant": "gemma", "select": "same"}}),
    "plain to wide": ({"altup": {"width": 1}}, {"altup": {"width": 2, "recycled": False}}),
    "plain tied to wide": ({"altup": {"width": 1}, "model": TIED}, {"altup": {"width": 4, "recycled": False}}),
    "plain to sum": ({"altup": {"width": 1}}, {"altup": {"width": 4, "variant": "sum", "recycled": False}}),
    "sum 2 to 4": ({"altup": {"variant": "sum", "recycled": False}}, {"altup": {"width": 4}}),
    "round_robin": ({"altup": {"variant": "round_robin"}}, {"altup": {"width": 8}}),
    "round_robin tied, layers": (
        {"altup": {"variant": "round_robin"}, "model": TIED},
        {"altup": {"width": 4}, "model": {"num_layers": 7}},
    ),
    "hc 2 to 4": ({"altup": {"variant": "hc"}}, {"altup": {"width": 4}}),
    "hc same, layers": (
        {"altup": {"variant": "hc", "select": "same"}},
        {"altup": {"width": 8}, "model": {"num_layers": 7}},
    ),
    "hc wide": ({"altup": {"variant": "hc", "recycled": False}}, {"altup": {"width": 4}}),
    "plain to hc": ({"altup": {"width": 1}}, {"altup": {"width": 4, "variant": "hc"}}),
    "dynamic, upcycle, layers": ({"altup": {"variant": "dynamic"}}, {"model": {"num_layers": 7}, "moe": EXPERTS}),
    "branches 2 to 8, layers": ({"altup": {"level": "branch"}}, {"altup": {"width": 8}, "model": {"num_layers": 5}}),
    "branches, gemma wide": (
        {"altup": {"level": "branch", "variant": "gemma", "recycled": False}},
        {"altup": {"width": 4}},
    ),
    "branches, hc same, layers": (
        {"altup": {"level": "branch", "variant": "hc", "select": "same"}},
        {"altup": {"width": 8}, "model": {"num_layers": 7}},
    ),
    "branches, hc": ({"altup": {"level": "branch", "variant": "hc"}}, {"altup": {"width": 4}}),
    "delayed, layers": ({"altup": {"correct": "delayed"}}, {"altup": {"width": 4}, "model": {"num_layers": 7}}),
    "delayed, wide tables": ({"altup": {"correct": "delayed", "recycled": False}}, {"altup": {"width": 8}}),
    "delayed branches": ({"altup": {"correct": "delayed", "level": "branch"}}, {"altup": {"width": 4}}),
    "delayed hc, layers": (
        {"altup": {"correct": "delayed", "variant": "hc"}},
        {"altup": {"width": 4}, "model": {"num_layers": 5}},
    ),
    "delayed plain, upcycle, layers": (
        {"altup": {"width": 1, "correct": "delayed"}},
        {"model": {"num_layers": 6}, "moe": EXPERTS},
    ),
    "delayed gemma": ({"altup": {"correct": "delayed", "variant": "gemma"}}, {"altup": {"width": 4}}),
    "delayed round_robin": ({"altup": {"correct": "delayed", "variant": "round_robin"}}, {"altup": {"width": 4}}),
    "branches, round_robin, layers": (
        {"altup": {"level": "branch", "variant": "round_robin"}},
        {"altup": {"width": 4}, "model": {"num_layers": 5}},
    ),
    "plain to branches, round_robin": (
        {"altup": {"width": 1}},
        {"altup": {"level": "branch", "variant": "round_robin", "width": 4}},
    ),
    "plain to branches, experts": (
        {"altup": {"width": 1}},
        {"altup": {"level": "branch", "width": 2}, "moe": EXPERTS, "model": {"num_layers": 6}},
    ),
    "upcycle to partial": ({}, {"moe": PARTIAL}),
    "stream, partial for the dense half, layers": (
        {"moe": {**PARTIAL, "layer_freq": 2}},
        {"altup": {"width": 4}, "model": {"num_layers": 7}, "moe": {"layer_freq": 1}},
    ),
    "upcycle": ({}, {"moe": EXPERTS}),
    "upcycle sigmoid, shared": (
        {},
        {"moe": {**EXPERTS, **SIGMOID, "layer_freq": 1, "top_k": 3, "shared_expert_size": 8}},
    ),
    "upcycle the dense half": ({"moe": EXPERTS}, {"moe": {"layer_freq": 1}}),
    "more experts": ({"moe": EXPERTS}, {"moe": {"num_experts": 8, "top_k": 4}}),
    "more experts sigmoid, shared": (
        {"moe": {**EXPERTS, **SIGMOID, "shared_expert_size": 8}},
        {"moe": {"num_experts": 12, "top_k": 6}},
    ),
    "more experts, loads of steps": (
        {"moe": {**EXPERTS, "load_balancing_type": "global_aux_loss"}},
        {"moe": {"num_experts": 8, "top_k": 4}},
    ),
    "split experts": ({"moe": EXPERTS}, {"moe": {"num_experts": 8, "top_k": 4, "ffn_hidden_size": 12}}),
    "new shared expert and biases": (
        {"moe": {**EXPERTS, "score_function": "sigmoid"}},
        {"moe": {"shared_expert_size": 8, "expert_bias_update_rate": 0.01}},
    ),
    "layers": ({"moe": EXPERTS}, {"model": {"num_layers": 7}}),
    "layers, plain": ({"altup": {"width": 1}}, {"model": {"num_layers": 5}}),
    "layers, wide": ({"altup": {"recycled": False, "variant": "gemma"}}, {"model": {"num_layers": 5}}),
    "stream, upcycle, layers": (
        {"altup": {"width": 1}},
        {"altup": {"width": 4}, "model": {"num_layers": 7}, "moe": {**EXPERTS, "shared_expert_size": 8}},
    ),
    "stream, experts, layers": (
        {"altup": {"variant": "gemma"}, "moe": EXPERTS},
        {"altup": {"width": 8}, "model": {"num_layers": 6}, "moe": {"num_experts": 8, "top_k": 4, "layer_freq": 1}},
    ),
    "stream, split, layers": (
        {"moe": EXPERTS},
        {
            "altup": {"width": 4},
            "model": {"num_layers": 6},
            "moe": {"num_experts": 8, "top_k": 4, "ffn_hidden_size": 12},
        },
    ),
}


def changed(config: RunConfig, sections: Sections) -> RunConfig:
    return replace(config, **{name: replace(getattr(config, name), **keys) for name, keys in sections.items()})


def growth_of(before: Sections, after: Sections, **options: Any) -> Growth:
    source = tiny(**before)
    split = after.get("moe", {}).get("ffn_hidden_size") == 12
    growth = Growth(source, changed(source, after), 1, **{"split_experts": split, **options})
    check_growth(growth)
    return growth


def grow(tmp_path: Path, growth: Growth, optimizer: bool = True) -> tuple[Path, Grown]:
    """(the source's checkpoint, what was grown from it)."""
    source = save(tmp_path / "source", growth.source, optimizer)
    with Checkpoint(source) as checkpoint:
        return source, grow_checkpoint(checkpoint, growth, tmp_path / "grown" / "checkpoints")


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing small files to the disk is most of the time of these tests."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.mark.parametrize("case", CASES)
def test_the_function_is_preserved(tmp_path: Path, case: str) -> None:
    source, grown = grow(tmp_path, growth_of(*CASES[case]))
    assert difference(source, grown.directory, torch.float32) < 1e-5
    assert difference(source, grown.directory, torch.float64) < 1e-12


@pytest.mark.parametrize("case", ["altup 2 to 4", "stream, experts, layers", "stream, split, layers", "round_robin"])
def test_bf16_and_its_fp32_copies(tmp_path: Path, case: str) -> None:
    before, after = CASES[case]
    growth = growth_of({**before, "train": {"precision": "bf16"}}, after)
    source, grown = grow(tmp_path, growth)
    assert difference(source, grown.directory, torch.float64) < 1e-12
    with Checkpoint(grown.directory) as checkpoint:
        weights, main = checkpoint.manifest.of_kind("weights"), checkpoint.manifest.of_kind("main")
        assert {weights[name].dtype for name in main} == {"BF16"}
        assert {t.dtype for name, t in weights.items() if ".altup." in name} == {"F32"}
        for name in main:
            assert torch.equal(
                load_tensor(checkpoint, f"main/{name}").bfloat16(), load_tensor(checkpoint, f"weights/{name}")
            ), name


def test_noise_is_added_before_rounding(tmp_path: Path) -> None:
    before, after = CASES["more experts"]
    growth = growth_of({**before, "train": {"precision": "bf16"}}, after, expert_noise=0.1)
    source, grown = grow(tmp_path, growth)
    assert difference(source, grown.directory, torch.float64) > 1e-4
    name = "model.layers.1.mlp.experts.{}.up_proj.weight"
    with Checkpoint(source) as old, Checkpoint(grown.directory) as new:
        precise = load_tensor(new, f"main/{name.format(5)}")
        assert torch.equal(precise.bfloat16(), load_tensor(new, f"weights/{name.format(5)}"))
        original = load_tensor(old, f"main/{name.format(1)}")
        assert torch.equal(load_tensor(new, f"main/{name.format(1)}"), original)
        assert float((precise - original).std() / original.std()) == pytest.approx(0.1, rel=0.1)


def test_without_the_last_layers_shares_the_epsilon_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """m equal copies add up to m times the old sum, and the final norm takes that away only up to its epsilon."""
    plain = widening.widened_prediction
    monkeypatch.setattr(
        widening,
        "widened_prediction",
        lambda leaf, value, times, block, summed: plain(leaf, value, times, block, False),
    )
    growth = growth_of({"model": {"init_method_std": 0.02}}, {"altup": {"width": 8}})
    source, grown = grow(tmp_path, growth)
    assert difference(source, grown.directory, torch.float64) > 1e-3


def gradients(directory: Path, config: RunConfig) -> dict[str, Tensor]:
    """Of the language-modelling loss, float64."""
    model, ids = reference(directory, torch.float64), tokens(config)
    losses = model.losses(ids[:, :-1], ids[:, 1:])
    (losses.lm_sum / losses.num_tokens).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_what_the_rules_say(tmp_path: Path, case: str) -> None:
    growth = growth_of(*CASES[case])
    source, grown = grow(tmp_path, growth, optimizer=False)
    old, new = gradients(source, growth.source), gradients(grown.directory, growth.target)
    known = 0
    for name, shape in global_shapes(growth.target).items():
        rule = rule_of(name, shape, growth)
        if rule.gradient is not None and rule.source is not None:
            known += 1
            expected = rule.moment(old[rule.source], 1)
            assert (new[name] - expected).norm() <= 1e-9 * expected.norm(), name
    assert known > 20


def test_optimizer_state_is_carried_where_the_gradient_is_known(tmp_path: Path) -> None:
    growth = growth_of(*CASES["stream, split, layers"])
    source, grown = grow(tmp_path, growth)
    with Checkpoint(source) as old, Checkpoint(grown.directory) as new:
        assert new.manifest.has_optimizer
        assert not new.manifest.of_kind("rng")
        kept = ("step", "consumed_samples", "skipped_steps", "optimizer_steps", "scheduler_steps", "data_fingerprint")
        assert [getattr(new.manifest, k) for k in kept] == [getattr(old.manifest, k) for k in kept]
        assert new.manifest.step == STEP
        for kind, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
            same = f"{kind}/model.layers.0.self_attn.q_proj.weight"
            assert torch.equal(load_tensor(new, same), load_tensor(old, same))
            expert = load_tensor(old, f"{kind}/model.layers.1.mlp.experts.1.down_proj.weight")
            part = load_tensor(new, f"{kind}/model.layers.1.mlp.experts.5.down_proj.weight")
            assert torch.equal(part, expert[:, 12:] / 2**power)
            for fresh in ("model.layers.0.altup.predict", "model.layers.4.self_attn.q_proj.weight"):
                assert not load_tensor(new, f"{kind}/{fresh}").any()
    trained = len(global_shapes(growth.target))
    assert grown.carried + sum(grown.reset.values()) == trained
    assert set(grown.reset) == {"copies whose shares of the old gradient are not known", "new weights"}


def test_a_source_without_optimizer_state_stays_without(tmp_path: Path) -> None:
    _, grown = grow(tmp_path, growth_of(*CASES["altup 2 to 4"]), optimizer=False)
    assert (grown.carried, dict(grown.reset)) == (0, {})
    with Checkpoint(grown.directory) as checkpoint:
        assert not checkpoint.manifest.has_optimizer
        assert {name.partition("/")[0] for name in checkpoint.manifest.tensors} == {"weights"}


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = save(tmp_path / "source", tiny())
    growth = growth_of(*CASES["altup 2 to 4"])

    def full(*_: Any) -> Tensor:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("altup_moe.checkpoint.grow.checkpoint.grown_tensor", full)
    with Checkpoint(source) as checkpoint, pytest.raises(OSError, match="No space"):
        grow_checkpoint(checkpoint, growth, tmp_path / "grown" / "checkpoints")
    assert list((tmp_path / "grown" / "checkpoints").iterdir()) == []
