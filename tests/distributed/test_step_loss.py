"""What a run minimises does not depend on the layout or on the size of a micro-batch, whatever labels count.

Every objective of the trainer on real text and a task: losses, and the gradient norm of the first step, of runs that
see the same samples; five steps in `make test`, 20 in the rest. Experts are dropless, and balance losses see whole
steps: those of micro-batches depend on them by definition. `python -m tests.distributed.test_step_loss` prints the
whole table, or that of the objectives it names.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Literal

import pytest

from altup_moe.config import RunConfig
from tests.distributed.cases import with_long, world_size
from tests.distributed.runs import records, text_run, train_on_ranks

pytestmark = pytest.mark.distributed

T5 = {
    "arch": "t5",
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_query_groups": 4,
    "decoder_seq_length": 16,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
}
OBJECTIVES: dict[str, dict[str, Any]] = {
    "causal": {},
    "prefix": {"data": {"objective": "prefix"}},
    "span corruption": {"data": {"objective": "span_corruption", "sentinels": 20}},
    "tasks": {"data": {"mixture": ("python-docs=0.5", "sst2=0.5"), "sentinels": 20}},
    "t5": {"data": {"objective": "prefix", "sentinels": 20}, "model": T5},
}
ENCODER_DECODER = ("one", "dp2", "tp2", "ep2")
PLACES = ("one", "dp2", "cp2", "cp4", "pp2", "tp2", "ep2", "tp2-pp2-ep2")
SIZES = (1, 2, 8)


def allowed(objective: str, layout: str) -> bool:
    """Encoder-decoders have no pipeline stages and no context ranks."""
    return objective != "t5" or layout in ENCODER_DECODER


CASES = [case for case in product(OBJECTIVES, PLACES, SIZES) if allowed(*case[:2])]
DIAGONAL = [
    ("prefix", "one", 1),
    ("prefix", "tp2-pp2-ep2", 2),
    ("span corruption", "cp4", 2),
    ("tasks", "dp2", 8),
    ("tasks", "tp2", 1),
    ("t5", "ep2", 1),
]
LONG = [case for case in CASES if case not in DIAGONAL]


def run_of(objective: str, layout: str, size: int, directory: Path, steps: int = 20) -> RunConfig:
    """The first steps of twenty, each of 16 samples."""
    sections = {name: dict(fields) for name, fields in OBJECTIVES[objective].items()}
    if "mixture" in sections.get("data", {}):
        sections["data"]["task_files"] = (f"sst2={_task_files(directory)}",)
    moe = {"load_balancing_type": "global_aux_loss"}
    train = {"micro_batch_size": size, "global_batch_size": 16, "steps": 20, "stop_after": steps}
    name = f"{objective}-{layout}-{size}-{steps}".replace(" ", "-")
    return text_run(layout, directory, name, moe=moe, train=train, **sections)


def _task_files(directory: Path) -> Path:
    """Sentences of very different lengths, so that micro-batches hold very different numbers of tokens."""
    target = directory / "sst2"
    if not target.is_dir():
        target.mkdir()
        for split in ("train", "validation"):
            rows = [{"sentence": "fine " * (1 + n % 3), "label": n % 2} for n in range(24)]
            (target / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return target


def figures(objective: str, layout: str, size: int, directory: Path, steps: int = 20) -> tuple[float, list[float]]:
    """(gradient norm of the first step, losses)."""
    config = run_of(objective, layout, size, directory, steps)
    assert train_on_ranks(layout, config) == [0] * world_size(layout)
    lines = records(config)
    return lines[0]["grad_norm"], [line["loss"] for line in lines]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("step-loss")


@pytest.fixture(scope="module")
def whole(directory: Path) -> Any:
    """Figures of one rank, whose only micro-batch of a step holds half of its samples; trained once an objective."""
    return cache(lambda objective, steps: figures(objective, "one", 8, directory, steps))


@pytest.mark.parametrize(("objective", "layout", "size"), with_long(DIAGONAL, LONG))
def test_gradient_and_losses(objective: str, layout: str, size: int, directory: Path, whole: Any) -> None:
    steps = 5 if (objective, layout, size) in DIAGONAL else 20
    norm, expected = whole(objective, steps)
    got, found = figures(objective, layout, size, directory, steps)
    assert len(found) == steps
    assert got == pytest.approx(norm, rel=1e-5)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed is not installed")
@pytest.mark.parametrize(("layout", "stage"), with_long([("cp2", 2)], [("tp2-ep2", 1)]))
def test_under_deepspeeds_engine(layout: str, stage: Literal[1, 2], directory: Path, whole: Any) -> None:
    norm, expected = whole("prefix", 5)
    config = run_of("prefix", layout, 1, directory, 5)
    config = replace(
        config,
        train=replace(config.train, engine="deepspeed"),
        parallel=replace(config.parallel, zero_stage=stage),
        log=replace(config.log, run_dir=f"{config.log.run_dir}-zero"),
    )
    assert train_on_ranks(layout, config) == [0] * world_size(layout)
    lines = records(config)
    assert lines[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    assert [line["loss"] for line in lines] == pytest.approx(expected, rel=1e-4)


def main(objectives: list[str]) -> int:
    """Print the table: gradient norm of the first step and last loss, and the worst differences from one rank."""
    print("objective        layout        micro-batch   grad norm   loss 20   worst of norm, of losses (relative)")
    cases = [case for case in CASES if case[0] in objectives]
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        for objective in objectives:
            norm, expected = figures(objective, "one", 8, Path(name))
            for _, layout, size in (case for case in cases if case[0] == objective):
                got, found = figures(objective, layout, size, Path(name))
                worst = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
                off = abs(got - norm) / norm
                failed += off > 1e-5 or worst > 1e-4
                print(
                    f"{objective:16} {layout:13} {size:11} {got:11.6f} {found[-1]:9.5f}   {off:.1e}  {worst:.1e}",
                    flush=True,
                )
    print(f"{failed} of {len(cases)} differ")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(OBJECTIVES)))
