"""The reference's streams whose outputs are delayed (altup.correct): the definition, generation, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from altup_moe.model.reference.gpt import AltUpMoEForCausalLM
from altup_moe.model.reference.layers import DROPLESS
from tests.unit.model.reference.test_gpt import (
    MOE,
    build,
    tokens,
)
from tests.unit.model.reference.test_gpt import (
    test_greedy_with_a_cache_is_greedy_without as check_greedy,
)
from tests.unit.model.reference.test_gpt import (
    test_no_position_sees_a_later_one as check_positions,
)
from tests.unit.model.reference.test_gpt import (
    test_saved_and_loaded_through_the_auto_classes as check_files,
)

STREAMS: list[dict[str, Any]] = [
    {"altup_width": 1, "altup_level": "branch"},
    {"altup_width": 2},
    {"altup_width": 4, "altup_level": "branch"},
    {"altup_width": 4, "altup_variant": "gemma", "altup_recycled": False},
    {"altup_width": 4, "altup_variant": "wide_residual_kept"},
    {"altup_width": 4, "altup_variant": "mhc_single_pass", "altup_level": "branch"},
]


def one_line_form(model: AltUpMoEForCausalLM, ids: Tensor) -> Tensor:
    """Logits by u' = r' M x, x' = M x + g (x) y, where a write of altup's passes by the block that is read next."""
    config, (b, s) = model.config, ids.shape
    k, d = config.altup_width, config.hidden_size
    embedded = model.model.embed_tokens(ids)
    x_BSKD = torch.stack([embedded] * k, 2) if config.altup_recycled else embedded.view(b, s, k, d)
    seen_BSKD, positions = x_BSKD, torch.arange(s)[None]
    for n, layer in enumerate(model.model.layers):
        j, after = n % k, (n + 1) % k
        e_j, c = torch.eye(k, dtype=x_BSKD.dtype)[j], dict(layer.altup.named_parameters())
        m, of_change = torch.eye(k, dtype=x_BSKD.dtype), True
        if config.altup_variant == "altup":
            g = torch.where(torch.arange(k) == after, 0, c["correct"])
            r, m, of_change = e_j, (torch.eye(k) - torch.outer(g, e_j)) @ c["predict"], False
        elif config.altup_variant == "gemma":
            r, m, g = e_j @ c["predict"], c["predict"], c["correct"]
        elif config.altup_variant == "round_robin":
            r, g, of_change = c["read"], c["scale"] * e_j, False
        else:
            r, m, g = c["read"], c["mix"], c["write"]
        u_BSD = torch.einsum("k,bskd->bsd", r, x_BSKD if config.altup_variant == "altup" else seen_BSKD)
        y_BSD, _ = layer.compute(u_BSD, DROPLESS, positions, None, None)
        written_BSD = y_BSD - u_BSD if of_change else y_BSD
        seen_BSKD = torch.einsum("ik,bskd->bsid", m, x_BSKD)
        x_BSKD = seen_BSKD + torch.einsum("i,bsd->bsid", g, written_BSD)
    out = x_BSKD.sum(2) if config.altup_recycled else x_BSKD.reshape(b, s, k * d)
    return model.model.norm(out) @ model.model.embed_tokens.weight.t()


@pytest.mark.parametrize("variant", ["altup", "gemma", "round_robin", "hc"])
@pytest.mark.parametrize(("width", "recycled"), [(2, True), (4, False)])
def test_it_is_read_one_step_later(variant: str, width: int, recycled: bool) -> None:
    fields = {"altup_variant": variant, "altup_recycled": recycled, "altup_width": width}
    delayed, following = (
        build(dtype=torch.float64, num_hidden_layers=5, altup_correct=correct, **MOE, **fields)
        for correct in ("delayed", "next")
    )
    torch.testing.assert_close(delayed(tokens()).logits, one_line_form(delayed, tokens()), rtol=1e-10, atol=1e-10)
    assert (delayed(tokens()).logits - following(tokens()).logits).abs().max() > 1e-2


@pytest.mark.parametrize("level", ["layer", "branch"])
def test_a_plain_residual_is_read_one_step_later(level: str) -> None:
    """x_{l+1} = x_l + f(u_l), u_{l+1} = x_l; f is a layer without its residual, or a branch (FarSkip's)."""
    fields = {"dtype": torch.float64, "num_hidden_layers": 5, "altup_width": 1, "altup_level": level, **MOE}
    model, ids = build(altup_correct="delayed", **fields), tokens()
    x = u = model.model.embed_tokens(ids)
    attention = (torch.arange(ids.shape[1])[None], None, None)
    for layer in model.model.layers:
        if level == "layer":
            x, u = x + layer.compute(u, DROPLESS, *attention)[0] - u, x
        else:
            x, u = x + layer.attention(u, *attention), x
            x, u = x + layer.feed_forward(u, DROPLESS)[0], x
    expected = model.model.norm(x) @ model.model.embed_tokens.weight.t()
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-10, atol=1e-10)
    assert not [name for name, _ in model.named_parameters() if "altup" in name]
    following = build(altup_correct="next", **fields)
    assert (following(ids).logits - expected).abs().max() > 1e-2


@pytest.mark.parametrize("stream", STREAMS)
def test_what_holds_of_every_stream(stream: dict[str, Any], tmp_path: Path) -> None:
    delayed = {**stream, "altup_correct": "delayed"}
    check_positions(delayed)
    check_greedy(delayed, MOE)
    check_files(delayed, tmp_path)
