"""What cannot be grown is refused with the key, the value and what would fit."""

from __future__ import annotations

from typing import Any

import pytest

from altup_moe.checkpoint.grow.checks import check_growth
from altup_moe.checkpoint.grow.rules import Growth
from altup_moe.config import ConfigError, ParallelConfig, UserError
from altup_moe.config.checks import smallest_world
from tests.unit.checkpoint.grow.test_grow import EXPERTS, Sections, changed
from tests.unit.checkpoint.models_for_tests import tiny

MORE = {"num_experts": 8, "top_k": 4}
ONE = {**EXPERTS, "top_k": 1}
SIGMOID = {**EXPERTS, "score_function": "sigmoid"}
ROBIN = {"variant": "round_robin"}
DYNAMIC = {"variant": "dynamic"}
DELAYED = {"correct": "delayed"}
PARTIAL = {"partial": True, "top_k": 1}


@pytest.mark.parametrize(
    ("before", "after", "key", "says"),
    [
        ({}, {"altup": {"width": 1}}, "altup.width", "2, 4, 8 would fit"),
        ({"altup": {"width": 4}}, {"altup": {"width": 2}}, "altup.width", "4, 8 would fit"),
        ({}, {"altup": {"width": 4, "variant": "gemma"}}, "altup.variant", "altup would fit"),
        ({}, {"altup": {"width": 4, "select": "same"}}, "altup.select", "alternating would fit"),
        (
            {},
            {"altup": {"width": 4, "correct": "delayed"}},
            "altup.correct",
            "another function of the source's 2 blocks; next would fit",
        ),
        ({"altup": {"width": 1}}, {"altup": {"width": 2, **DELAYED}}, "altup.correct", "next would fit"),
        ({"altup": {"width": 1, **DELAYED}}, {"altup": {"correct": "next"}}, "altup.correct", "delayed would fit"),
        ({"altup": {"width": 1, **DELAYED}}, {"altup": {"width": 2}}, "altup.width", "1 would fit"),
        ({"altup": {"width": 1, **DELAYED}}, {"altup": {"level": "branch"}}, "altup.level", "layer would fit"),
        ({}, {"altup": {"width": 4, "recycled": False}}, "altup.recycled", "True would fit"),
        ({"altup": {"width": 1}}, {"altup": {"width": 2, **ROBIN}}, "altup.variant", "its residual included"),
        ({"altup": DYNAMIC}, {"altup": {"width": 4}}, "altup.variant", "altup.width 2 would fit"),
        ({"altup": {"width": 1}}, {"altup": {"width": 2, **DYNAMIC}}, "altup.variant", "altup, gemma, hc would fit"),
        ({}, {"altup": {"width": 4, **DYNAMIC}}, "altup.variant", "altup would fit"),
        ({"altup": {**DYNAMIC, "coef_clip": 1.0}}, {"altup": {"coef_clip": 2.0}}, "altup.coef_clip", "1.0 would fit"),
        ({"moe": {**EXPERTS, **PARTIAL}}, {"moe": {"partial": False}}, "moe.shared_expert_size", "moe.partial true"),
        ({"altup": {"recycled": False, **ROBIN}}, {"altup": {"width": 4}}, "altup.width", "2 would fit"),
        ({"altup": {"width": 1}}, {"altup": {"width": 2, "variant": "sum"}}, "altup.recycled", "false would fit"),
        ({"sequence": {"stride": 4}}, {"altup": {"width": 4}}, "sequence.stride", "1 would fit"),
        ({}, {"altup": {"width": 4}, "sequence": {"stride": 2}}, "sequence.stride", "1 would fit"),
        ({}, {"model": {"num_layers": 3}}, "model.num_layers", "4 or more would fit"),
        ({}, {"model": {"hidden_size": 64}}, "model.hidden_size", "32 would fit"),
        ({}, {"model": {"num_layers": 5, "vocab_size": 128}}, "model.vocab_size", "64 would fit"),
        (
            {},
            {"model": {"num_layers": 5}, "data": {"corpus": "wikipedia-sample"}},
            "data.corpus",
            "python-docs would fit",
        ),
        ({}, {"model": {"num_layers": 5}, "train": {"precision": "bf16"}}, "train.precision", "fp32 would fit"),
        ({}, {"model": {"num_layers": 5}, "train": {"global_batch_size": 4}}, "train.global_batch_size", "8 would fit"),
        ({}, {"model": {"num_layers": 5}, "parallel": {"pipeline": 2}}, "parallel.pipeline", "1, 5 would fit"),
        ({}, {"moe": {**EXPERTS, "ffn_hidden_size": 16}}, "moe.ffn_hidden_size", "24 would fit"),
        ({}, {"moe": ONE}, "moe.top_k", "2 or more would fit"),
        ({}, {"moe": {**EXPERTS, "top_k": 5}}, "moe.top_k", "at most moe.num_experts"),
        ({"moe": EXPERTS}, {"moe": {"num_experts": 0}}, "moe.num_experts", "4 would fit"),
        ({"moe": EXPERTS}, {"moe": {"layer_freq": 4}}, "moe.layer_freq", "a divisor of 2"),
        ({"moe": EXPERTS}, {"moe": {"num_experts": 6}}, "moe.num_experts", "4 or 8 would fit"),
        ({"moe": EXPERTS}, {"moe": {"num_experts": 2}}, "moe.num_experts", "4 or 8 would fit"),
        ({"moe": EXPERTS}, {"moe": {"num_experts": 8}}, "moe.top_k", "4 would fit"),
        ({"moe": EXPERTS}, {"moe": {"num_experts": 12, "top_k": 4}}, "moe.top_k", "6 would fit"),
        ({"moe": EXPERTS}, {"moe": {"top_k": 3}}, "moe.top_k", "2 would fit"),
        ({"moe": ONE}, {"moe": {"num_experts": 8, "top_k": 2}}, "moe.num_experts", "4 would fit"),
        ({"moe": EXPERTS}, {"moe": {**MORE, "ffn_hidden_size": 12}}, "moe.ffn_hidden_size", "24 would fit"),
        ({"moe": EXPERTS}, {"moe": {"score_function": "sigmoid"}}, "moe.score_function", "softmax would fit"),
        (
            {"moe": {**SIGMOID, "expert_bias_update_rate": 0.01}},
            {"moe": {**MORE, "expert_bias_update_rate": 0.0}},
            "moe.expert_bias_update_rate",
            "0.01 would fit",
        ),
        (
            {"moe": {**EXPERTS, "shared_expert_size": 8}},
            {"moe": {"shared_expert_size": 0}},
            "moe.shared_expert_size",
            "8",
        ),
    ],
)
def test_what_cannot_be_grown(before: Sections, after: Sections, key: str, says: str) -> None:
    source = tiny(**before)
    with pytest.raises(ConfigError) as error:
        check_growth(Growth(source, changed(source, after), 1))
    assert error.value.key == key
    assert says in error.value.fits


@pytest.mark.parametrize(
    ("before", "after", "options", "key", "says"),
    [
        ({}, {"moe": EXPERTS}, {"split_experts": True}, "split_experts", "upcycle it first"),
        ({"moe": EXPERTS}, {"altup": {"width": 4}}, {"split_experts": True}, "split_experts", "a multiple of"),
        ({"moe": EXPERTS}, {"moe": MORE}, {"split_experts": True}, "moe.ffn_hidden_size", "12 would fit"),
        (
            {"moe": EXPERTS},
            {"moe": {"num_experts": 20, "top_k": 10}},
            {"split_experts": True},
            "moe.num_experts",
            "must divide the inner width",
        ),
        ({}, {"altup": {"width": 4}}, {"expert_noise": 0.1}, "expert_noise", "0 would fit"),
        ({}, {"moe": EXPERTS}, {"expert_noise": -1.0}, "expert_noise", "at least 0"),
        ({}, {"moe": EXPERTS}, {"coefficient_noise": 0.1}, "coefficient_noise", "0 would fit"),
        ({}, {"altup": {"width": 4}}, {"coefficient_noise": float("nan")}, "coefficient_noise", "finite"),
        ({}, {"altup": {"width": 4}}, {"seed": -1}, "seed", "must lie in"),
    ],
)
def test_options_that_do_not_fit(
    before: Sections, after: Sections, options: dict[str, Any], key: str, says: str
) -> None:
    source = tiny(**before)
    with pytest.raises(ConfigError) as error:
        check_growth(Growth(source, changed(source, after), **{"seed": 1, **options}))
    assert error.value.key == key
    assert says in error.value.fits


def test_nothing_to_grow() -> None:
    source = tiny()
    with pytest.raises(UserError, match="nothing grows"):
        check_growth(Growth(source, changed(source, {"train": {"steps": 50}}), 1))


def test_a_layout_is_checked_for_the_ranks_it_needs() -> None:
    layout = {"tensor": 2, "pipeline": 2, "expert": 4}
    source = tiny(moe=EXPERTS)
    after = {"altup": {"width": 4}, "parallel": layout}
    check_growth(Growth(source, changed(source, after), 1))
    assert smallest_world(changed(source, after).parallel) == 8
    assert smallest_world(changed(source, {"parallel": {"data": 3}}).parallel) == 3
    assert smallest_world(changed(source, {}).parallel) == 1
    assert source.parallel == ParallelConfig()
