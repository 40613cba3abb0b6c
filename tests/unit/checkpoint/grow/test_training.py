"""A grown model trains: losses fall, all gradients flow, copies come apart, and those that cannot are named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from altup_moe.altup.widening import identical_blocks, widened_prediction
from altup_moe.checkpoint.grow.rules import Growth, equal_copies_notes
from altup_moe.model.reference.gpt import AltUpMoEForCausalLM, step_loss
from altup_moe.model.reference.layers import DROPLESS
from tests.unit.checkpoint.grow.test_grow import CASES, EXPERTS, Sections, grow, growth_of
from tests.unit.checkpoint.models_for_tests import reference, tokens


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushing small files to the disk is most of the time of these tests."""
    monkeypatch.setattr("os.fsync", lambda _: None)


def trained(tmp_path: Path, growth: Growth, steps: int = 6) -> tuple[AltUpMoEForCausalLM, list[float]]:
    """The grown model after some AdamW steps on one batch, float64, and its losses."""
    _, grown = grow(tmp_path, growth, optimizer=False)
    model, ids = reference(grown.directory, torch.float64), tokens(growth.target)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        result = model.losses(ids[:, :-1], ids[:, 1:])
        loss = step_loss([result])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model, losses


@torch.no_grad()
def equal_blocks(model: AltUpMoEForCausalLM, growth: Growth) -> set[int]:
    """Blocks that are copies of another, in what enters the last layer."""
    stream = model.model.widen(model.model.embed_tokens(tokens(growth.target)))
    positions = torch.arange(stream.shape[2])[None]
    for layer in list(model.model.layers)[:-1]:
        stream, _ = layer(stream, DROPLESS, positions, None, None)
    blocks = range(len(stream))
    old = growth.source.altup.width
    return {
        i
        for i in blocks
        for j in blocks
        if i != j and (i - j) % old == 0 and (stream[i] - stream[j]).norm() <= 1e-9 * stream[i].norm()
    }


@pytest.mark.parametrize("case", ["stream, experts, layers", "altup 2 to 8", "plain to wide"])
def test_every_layer_is_entered_by_whole_copies(tmp_path: Path, case: str) -> None:
    """Also new layers: blocks have shares only behind the last one."""
    growth = growth_of(*CASES[case])
    model, _ = trained(tmp_path, growth, steps=0)
    assert equal_blocks(model, growth) == set(range(growth.target.altup.width))


def test_copies_are_kept_to_themselves() -> None:
    """Averages over copies would preserve the function as well, but a stream of rank K stays one."""
    predict = torch.randn(2, 2, generator=torch.Generator().manual_seed(1)) + torch.eye(2)
    wide = widened_prediction("predict", predict, 4, 3, False)
    assert torch.linalg.matrix_rank(wide) == 8
    assert torch.equal(widened_prediction("predict", torch.eye(2), 4, 3, False), torch.eye(8))
    assert torch.equal(wide[4:6, 4:6], predict)


@pytest.mark.parametrize("case", ["stream, upcycle, layers", "stream, experts, layers", "stream, split, layers"])
def test_losses_fall_and_every_gradient_flows(tmp_path: Path, case: str) -> None:
    model, losses = trained(tmp_path, growth_of(*CASES[case]))
    assert losses[-1] < losses[0] - 0.1
    # Behind a projection that starts at zero, a gradient flows from the second step on.
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("before", "after", "equal"),
    [
        ({}, {"altup": {"width": 4}}, set()),
        ({"altup": {"variant": "gemma"}}, {"altup": {"width": 4}}, set()),
        ({"altup": {"width": 1}}, {"altup": {"width": 4}}, set()),
        ({"altup": {"width": 1}}, {"altup": {"width": 4, "recycled": False}}, set()),
        ({"altup": {"width": 1}}, {"altup": {"width": 4, "select": "same"}}, {1, 2, 3}),
        ({"altup": {"variant": "hc"}}, {"altup": {"width": 4}}, set()),
        ({"altup": {"variant": "hc"}}, {"altup": {"width": 8}}, {4, 5, 6, 7}),
        ({"altup": {"select": "same"}}, {"altup": {"width": 4}}, set()),
        ({"altup": {"select": "same"}}, {"altup": {"width": 8}}, {2, 3, 4, 5, 6, 7}),
        ({"altup": {"recycled": False}}, {"altup": {"width": 8}}, {4, 5, 6, 7}),
        ({}, {"altup": {"width": 8}}, {4, 5, 6, 7}),
        ({}, {"altup": {"width": 8}, "model": {"num_layers": 5}}, set()),
    ],
)
def test_copies_of_blocks_come_apart_but_for_those_named(
    tmp_path: Path, before: Sections, after: Sections, equal: set[int]
) -> None:
    growth = growth_of(before, after)
    model, _ = trained(tmp_path, growth, steps=3)
    target = growth.target
    named = identical_blocks(
        growth.source.altup.width, growth.width_times, target.model.num_layers, target.altup.select
    )
    assert equal_blocks(model, growth) == set(named) == equal
    assert bool(equal_copies_notes(growth)) == bool(equal)


def test_noise_on_coefficients_sets_all_apart(tmp_path: Path) -> None:
    growth = growth_of({}, {"altup": {"width": 8}}, coefficient_noise=1e-3)
    assert equal_copies_notes(growth) == []
    assert equal_blocks(trained(tmp_path, growth, steps=2)[0], growth) == set()


@pytest.mark.parametrize(
    ("before", "after", "options", "equal"),
    [
        ({}, {"moe": EXPERTS}, {}, False),
        ({"moe": EXPERTS}, {"moe": {"num_experts": 8, "top_k": 4}}, {}, True),
        ({"moe": EXPERTS}, {"moe": {"num_experts": 8, "top_k": 4}}, {"expert_noise": 0.01}, False),
        ({"moe": EXPERTS}, {"moe": {"num_experts": 8, "top_k": 4, "ffn_hidden_size": 12}}, {}, False),
    ],
)
def test_copies_of_experts(tmp_path: Path, before: Sections, after: Sections, options: dict, equal: bool) -> None:
    growth = growth_of(before, after, **options)
    model, _ = trained(tmp_path, growth, steps=3)
    experts = model.model.layers[1].mlp.experts
    first, copy = experts[0].up_proj.weight, experts[4 if len(experts) > 4 else 1].up_proj.weight
    assert ((first - copy).norm() <= 1e-9 * first.norm()) == equal
    assert bool(equal_copies_notes(growth)) == equal
