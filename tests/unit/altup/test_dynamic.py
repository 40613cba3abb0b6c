"""Coefficients for every token against transformers' own `Gemma3nTextAltUp` and both ends of its `Gemma3nTextModel`."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Gemma3nTextConfig
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextAltUp, Gemma3nTextModel

from altup_moe.altup.dynamic import MAGNITUDE_FLOOR, Dynamic, active, contract, correct, expand, predict
from altup_moe.model.reference.streams import BlockProjection, DynamicAltUp

S, B, D = 5, 3, 16
TOLERANCE = {"rtol": 1e-5, "atol": 1e-6}
NAMES = {
    "router_norm": "router_norm.weight",
    "router": "modality_router.weight",
    "prediction": "prediction_coefs.weight",
    "correction": "correction_coefs.weight",
}
"""Our names of the coefficients, and Gemma's."""


def gemma(width: int, block: int, clip: float | None) -> Gemma3nTextAltUp:
    """Random weights, large enough that tanh bends and a clip of 0.5 cuts."""
    torch.manual_seed(width)
    config = Gemma3nTextConfig(
        hidden_size=D, altup_num_inputs=width, altup_active_idx=block, altup_coef_clip=clip or 1e9, rms_norm_eps=1e-5
    )
    module = Gemma3nTextAltUp(config).train()
    for name, parameter in module.named_parameters():
        scale = 4.0 if "router" in name else 0.5
        parameter.data = torch.randn(parameter.shape) * scale + (name == NAMES["router_norm"])
    return module


def coefficients(module: Gemma3nTextAltUp) -> dict[str, Tensor]:
    """Gemma's weights as ours, of their own."""
    theirs = dict(module.named_parameters())
    return {ours: theirs[name].detach().clone().requires_grad_() for ours, name in NAMES.items()}


def layer(u: Tensor, weight: Tensor) -> Tensor:
    """Stands in for the Transformer layer."""
    return u + torch.tanh(u @ weight)


def by_gemma(module: Gemma3nTextAltUp, x_KBSD: Tensor, weight: Tensor) -> Tensor:
    """As `Gemma3nTextDecoderLayer` calls it."""
    predictions = module.predict(x_KBSD)
    return module.correct(predictions, layer(predictions[module.config.altup_active_idx], weight))


def inputs(width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Stream [K, B, S, D] as Gemma lays it out, a layer's weight, and what the result is multiplied with."""
    return torch.randn(width, B, S, D), torch.randn(D, D) / 4, torch.randn(width, B, S, D)


def assert_equal_gradients(module: Gemma3nTextAltUp, ours: dict[str, Tensor | None]) -> None:
    theirs = dict(module.named_parameters())
    for name, gradient in ours.items():
        expected = theirs[NAMES[name]].grad
        assert gradient is not None
        assert expected is not None
        assert (gradient - expected).norm() <= 1e-5 * expected.norm(), name
        assert expected.norm() > 0


CASES = pytest.mark.parametrize(
    ("width", "block", "clip"), [(2, 0, None), (4, 0, None), (4, 0, 0.5), (4, 2, 0.5), (8, 0, 120.0), (8, 5, None)]
)


@CASES
def test_layer_is_gemmas(width: int, block: int, clip: float | None) -> None:
    """Forward and every gradient, with weights beyond the clip."""
    module, (x, weight, probe) = gemma(width, block, clip), inputs(width)
    c, settings = coefficients(module), Dynamic(block, 1e-5, clip)
    before = {name: value.detach().clone() for name, value in c.items()}
    stream = x.transpose(1, 2).reshape(width * S, B, D).requires_grad_()
    w, v = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    predicted = predict(stream, c, settings)
    out = correct(predicted, layer(active(predicted, settings, width), w), c, settings)
    x.requires_grad_()
    expected = by_gemma(module, x, v)
    torch.testing.assert_close(out.view(width, S, B, D).transpose(1, 2), expected, **TOLERANCE)
    (out.view(width, S, B, D).transpose(1, 2) * probe).sum().backward()
    (expected * probe).sum().backward()
    assert_equal_gradients(module, {name: value.grad for name, value in c.items()})
    torch.testing.assert_close(stream.grad.view(width, S, B, D).transpose(1, 2), x.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(w.grad, v.grad, rtol=1e-5, atol=1e-4)
    for name, value in c.items():
        assert torch.equal(value, before[name]), f"{name} was changed in place"


@CASES
def test_the_reference_is_gemmas(width: int, block: int, clip: float | None) -> None:
    module, (x, weight, probe) = gemma(width, block, clip), inputs(width)
    ours = DynamicAltUp(width, block, D, 1e-5, clip, 0.02)
    for name, value in coefficients(module).items():
        getattr(ours, name).data = value.detach()
    u, predicted = ours.before(x)
    out, expected = ours.after(predicted, layer(u, weight)), by_gemma(module, x, weight)
    torch.testing.assert_close(out, expected, **TOLERANCE)
    (out * probe).sum().backward()
    (expected * probe).sum().backward()
    assert_equal_gradients(module, {name: p.grad for name, p in ours.named_parameters()})


class Blocks(torch.nn.Module):
    """In the place of Gemma's layers: keeps the stream that it is given, and puts out another."""

    def __init__(self, out: Tensor) -> None:
        super().__init__()
        self.out, self.seen = out, torch.empty(0)

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        self.seen = hidden_states
        return self.out


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("width", [2, 4, 8])
def test_ends_are_gemmas(width: int, small: bool) -> None:
    """The whole of `Gemma3nTextModel` around layers that are cut out. ``small``: under the floor of magnitudes."""
    torch.manual_seed(3)
    config = Gemma3nTextConfig(
        vocab_size=11, vocab_size_per_layer_input=11, hidden_size=D, hidden_size_per_layer_input=4, num_hidden_layers=1,
        intermediate_size=8, num_attention_heads=2, num_key_value_heads=1, head_dim=8, altup_num_inputs=width,
        layer_types=["full_attention"], num_kv_shared_layers=0, rms_norm_eps=1e-5, activation_sparsity_pattern=[0.0],
    )  # fmt: skip
    model = Gemma3nTextModel(config)
    embedded = torch.randn(B, S, D, requires_grad=True)
    left = torch.randn(width, B, S, D, requires_grad=True)
    model.layers[0] = blocks = Blocks(left)
    scale = 1e-4 if small else 1.0
    for projection in (*model.altup_projections, *model.altup_unembed_projections):
        projection.weight.data = torch.randn(D, D) * scale
    out = model(inputs_embeds=embedded, per_layer_inputs=torch.zeros(B, S, 1, 4), use_cache=False).last_hidden_state

    first, last = (
        [p.weight.detach().clone().requires_grad_() for p in ps]
        for ps in (model.altup_projections, model.altup_unembed_projections)
    )
    x, y = embedded.detach().transpose(0, 1).requires_grad_(), left.detach().transpose(1, 2).reshape(width * S, B, D)
    y.requires_grad_()
    stream = expand(x, [partial(F.linear, weight=w) for w in first])
    assert stream.shape == (width * S, B, D)
    narrow = contract(y, [partial(F.linear, weight=w) for w in last])
    mean_squares = (embedded @ first[0].t()).square().mean(-1)
    assert bool((mean_squares < MAGNITUDE_FLOOR).all()) == small
    torch.testing.assert_close(stream.view(width, S, B, D).transpose(1, 2), blocks.seen, **TOLERANCE)
    normed = F.rms_norm(narrow, (D,), model.norm.weight, 1e-5).transpose(0, 1)
    torch.testing.assert_close(normed, out, **TOLERANCE)

    probes = torch.randn_like(blocks.seen), torch.randn_like(out)
    ((blocks.seen * probes[0]).sum() + (out * probes[1]).sum()).backward()
    ((stream.view(width, S, B, D).transpose(1, 2) * probes[0]).sum() + (normed * probes[1]).sum()).backward()
    theirs = [p.weight.grad for p in (*model.altup_projections, *model.altup_unembed_projections)]
    for weight, expected in zip((*first, *last), theirs, strict=True):
        assert (weight.grad - expected).norm() <= 1e-5 * expected.norm()
    torch.testing.assert_close(x.grad.transpose(0, 1), embedded.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y.grad.view(width, S, B, D).transpose(1, 2), left.grad, rtol=1e-5, atol=1e-5)


def test_equal_blocks_and_identities_are_the_plain_stream() -> None:
    """Weights as they start, but for the ends' random part: K copies, F(x) in every block, and their mean."""
    c = {"router_norm": torch.ones(D), "router": torch.randn(4, D), "prediction": torch.zeros(16, 4)}
    c["correction"] = torch.zeros(4, 4)
    x, y, settings = torch.randn(S, B, D), torch.randn(S, B, D), Dynamic(1, 1e-5)
    identity = [lambda block: block] * 3
    stream = expand(x, identity)
    torch.testing.assert_close(stream, x.repeat(4, 1, 1))
    predicted = predict(stream, c, settings)
    assert torch.equal(predicted, stream)
    torch.testing.assert_close(contract(correct(predicted, y, c, settings), identity), y)


def test_no_block_starts_as_a_copy_of_another() -> None:
    """Blocks that start equal and that no layer computes on would stay equal."""
    ends = [BlockProjection(D, D, bias=False) for _ in range(3)]
    for end in ends:
        end.reset(0.02)
    blocks = expand(torch.randn(S, B, D), [end.weight.t().__rmatmul__ for end in ends]).view(4, S, B, D)
    for i in range(4):
        for k in range(i):
            assert 1e-3 < (blocks[i] - blocks[k]).norm() / blocks[i].norm() < 0.3


def test_a_row_of_zeros_has_gradients() -> None:
    x = torch.zeros(S, B, D, requires_grad=True)
    expand(x, [lambda block: block @ torch.eye(D)]).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_half_precision_keeps_coefficients_and_rounds_blocks() -> None:
    """bf16 blocks, fp32 coefficients and gradients; close to the same numbers in fp32."""
    module, (x, weight, _) = gemma(4, 0, None), inputs(4)
    settings, outs = Dynamic(0, 1e-5), []
    for dtype in (torch.bfloat16, torch.float32):
        c, stream = coefficients(module), x.reshape(4 * B, S, D).bfloat16().to(dtype)
        predicted = predict(stream, c, settings)
        out = correct(predicted, layer(active(predicted, settings, 4), weight.bfloat16().to(dtype)), c, settings)
        assert predicted.dtype == out.dtype == dtype
        out.float().sum().backward()
        assert {value.grad.dtype for value in c.values()} == {torch.float32}
        outs.append(out.float())
    assert (outs[0] - outs[1]).norm() < 0.02 * outs[1].norm()
