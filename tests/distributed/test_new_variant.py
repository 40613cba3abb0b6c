"""A stream variant that no module of the package names: one row and one function, trained on ranks.

Everything between `ROW` and `register` is what adding a variant takes. It reads all blocks, decays
one coefficient, and writes through a learned gate.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from altup_moe.altup.coefficients import Coefficient
from altup_moe.altup.static import Mixing
from altup_moe.altup.variants import VARIANTS, StreamVariant
from altup_moe.config import RunConfig
from altup_moe.config.load import HINTS
from altup_moe.model.build import build_model
from altup_moe.parallel.topology import topology
from altup_moe.train.optim import build_optimizer
from tests.distributed.cases import small, world_size
from tests.distributed.gradients import layout_step
from tests.distributed.ranks import run_ranks
from tests.distributed.runs import losses, text_run, train_quietly
from tests.distributed.test_gradients import assert_parity

pytestmark = pytest.mark.distributed

ROW = StreamVariant(
    "leaky",
    {
        "read": Coefficient(("K",), "one_hot"),
        "keep": Coefficient(("K",), "ones"),
        "leak": Coefficient(("K", "K"), "normal", neutral="zeros", weight_decay=True),
        "gate": Coefficient(("K",), "ones"),
    },
    "tests.distributed.test_new_variant:leaky",
    planned=False,
)


def leaky(block: int, c: Mapping[str, Tensor]) -> Mixing:
    """u = r X; X' = (diag(k) + L) X + tanh(g) (x) (y - u)."""
    return Mixing(c["read"], torch.diag(c["keep"]) + c["leak"], torch.tanh(c["gate"]), branch=True)


def register(function: Any, *args: Any) -> Any:
    """`function(*args)` in a process that knows the row, until it returns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, ROW.name, ROW)
        # The list of names that files may hold is made from the table at import.
        patch.setitem(HINTS, "altup.variant", Literal[tuple(VARIANTS)])
        return function(*args)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, ROW.name, ROW)


def leaky_run(layout: str, **sections: Any) -> RunConfig:
    altup = {"variant": ROW.name, "width": 4, **sections.pop("altup", {})}
    return small(layout, altup=altup, **sections)


BRANCHES = {"altup": {"level": "branch", "recycled": False}}


@pytest.mark.parametrize(
    ("layout", "ways"),
    [
        ("one", {}),
        ("tp2-ep2", {"train": {"recompute": "full"}}),
        ("tp2-pp2-ep2", {"overlap": {"microbatch_halves": True}}),
        ("dp2-pp2", {"overlap": {"mixing": "inline"}, "parallel": {"distributed_optimizer": True}}),
        ("tp2-pp2-ep2", BRANCHES),
    ],
)
def test_gradients_are_the_references(layout: str, ways: dict[str, Any]) -> None:
    config = leaky_run(layout, **ways)
    assert_parity(config, world_size(layout), step=registered_step)


def registered_step(*args: Any) -> Any:
    """On a rank: `layout_step`."""
    return register(layout_step, *args)


def test_a_run_on_four_ranks_follows_that_on_one(tmp_path: Path) -> None:
    found = {}
    for layout in ("one", "tp2-pp2-ep2"):
        config = text_run(layout, tmp_path, layout, altup={"variant": ROW.name, "width": 4}, train={"steps": 10})
        size = world_size(layout)
        assert run_ranks(size, register, train_quietly, config, size) == [0] * size
        found[layout] = losses(config)
    assert found["tp2-pp2-ep2"] == pytest.approx(found["one"], abs=1e-4)
    assert found["one"][-1] < found["one"][0] - 0.2


def decay_multipliers(config: RunConfig) -> dict[str, float]:
    """On a rank: the factor of optim.weight_decay of each coefficient of the first layer."""
    with topology(config.parallel) as topo:
        chunks = build_model(config, topo)
        groups = build_optimizer(chunks, config).param_groups
        of = {id(parameter): group["wd_mult"] for group in groups for parameter in group["params"]}
        coefficients = chunks[0].module.decoder.layers[0].coefficients
        return {name: of[id(parameter)] for name, parameter in coefficients.items()}


def test_the_optimizer_decays_what_the_row_says() -> None:
    (found,) = run_ranks(1, register, decay_multipliers, leaky_run("one"))
    assert found == {"read": 0.0, "keep": 0.0, "leak": 1.0, "gate": 0.0}
