"""Two engines, one loss curve: DeepSpeed's ZeRO follows Megatron's engine, and each goes on from the other's files."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from altup_moe.config import RunConfig
from tests.distributed.cases import with_long
from tests.distributed.runs import losses, records, text_run, train_on_ranks

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed is not installed"),
]

LOSS, NORM = 1e-4, 1e-3


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


STEPS = 6
"""Steps of a run of 20 that are taken: what is wrong with an engine shows in the first updates."""
CUT = 3


def with_engine(layout: str, directory: Path, name: str, engine: str, **sections: dict) -> RunConfig:
    """A run under "megatron", or "zero1" to "zero3"."""
    train = {"stop_after": STEPS, **sections.pop("train", {})}
    parallel: dict = {}
    if engine != "megatron":
        train["engine"] = "deepspeed"
        parallel["zero_stage"] = int(engine.removeprefix("zero"))
    return text_run(layout, directory, name, train=train, parallel=parallel, **sections)


@pytest.fixture(scope="module")
def megatron(directory: Path):
    """Records of a run under Megatron's engine, by layout and way; trained once."""
    known: dict[tuple[str, str], list[dict]] = {}

    def train_once(layout: str, way: str) -> list[dict]:
        if (layout, way) not in known:
            config = with_engine(layout, directory, f"megatron-{layout}-{way}", "megatron", **WAYS[way])
            assert set(train_on_ranks(layout, config)) == {0}
            known[layout, way] = records(config)
        return known[layout, way]

    return train_once


DENSE: dict = {"moe": {"num_experts": 0}}
DROPOUT: dict = {"model": {"hidden_dropout": 0.1, "attention_dropout": 0.1}}
WAYS: dict[str, dict] = {
    "plain": {},
    "one block": {"altup": {"width": 1}},
    "dense": DENSE,
    "clipped": {"optim": {"clip_grad": 0.3, "coefficient_lr_mult": 2.0}},
    "mup": {"optim": {"parametrization": "mup", "mup_base_hidden_size": 64, "mup_base_num_layers": 8}},
    "tied": {"model": {"share_embeddings_and_output_weights": True, "qk_layernorm": True}},
    "dense, tied": {**DENSE, "model": {"share_embeddings_and_output_weights": True}},
    "dynamic": {"altup": {"variant": "dynamic", "width": 4}},
    "dynamic, recompute": {"altup": {"variant": "dynamic"}, "train": {"recompute": "full"}},
    "mhc, recompute": {"altup": {"variant": "mhc", "width": 4, "level": "branch"}, "train": {"recompute": "full"}},
    "dense, dynamic": {**DENSE, "altup": {"variant": "dynamic", "width": 4}},
    "dense, halves": {**DENSE, "overlap": {"microbatch_halves": True}},
    "dropout": DROPOUT,
    "balanced": {
        "moe": {
            "score_function": "sigmoid",
            "expert_bias_update_rate": 0.01,
            "capacity_factor": 1.0,
            "shared_expert_size": 16,
        }
    },
    "recompute": {"train": {"recompute": "full"}},
    "recompute, inline": {"train": {"recompute": "full"}, "overlap": {"mixing": "inline"}},
    "halves": {"overlap": {"microbatch_halves": True}},
    "strided": {"sequence": {"stride": 4}},
    "dense, strided": {**DENSE, "sequence": {"stride": 4}},
    "bf16": {"train": {"precision": "bf16"}},
    "torch experts": {"moe": {"backend": "torch"}},
    "deepspeed experts": {"moe": {"backend": "deepspeed"}},
}

# Every stage; data, tensor, context and expert ranks; what changes how gradients come to the engine.
EQUAL = [
    ("ep2", "clipped", "zero2"),
    ("cp2", "mup", "zero1"),
    ("ep2", "halves", "zero1"),
    ("ep2", "mhc, recompute", "zero2"),
    ("dp2", "dense, dynamic", "zero3"),
    ("tp2-ep1", "dense", "zero3"),
    ("tp2-ep2", "strided", "zero2"),
]
# Other stages of the same layouts and ways; data beside expert parallelism; other experts.
EQUAL_LONG = [
    *(
        (layout, "plain", "zero1")
        for layout in ("one", "cp2", "dp2", "ep2", "tp2", "tp2-ep1", "tp2-ep2", "dp4-ep2-etp2")
    ),
    *((layout, "plain", "zero2") for layout in ("one", "dp2", "ep2", "tp2-ep2")),
    *(("ep2", way, "zero1") for way in ("one block", "dropout", "recompute")),
    *(("ep2", way, "zero2") for way in ("balanced", "recompute, inline", "dynamic, recompute", "torch experts")),
    *(("dp2", way, "zero3") for way in ("dense", "dense, tied", "dense, halves", "dense, strided")),
    *(("tp2-ep2", way, "zero1") for way in ("clipped", "tied", "deepspeed experts", "dynamic")),
]


@pytest.mark.parametrize(("layout", "way", "engine"), with_long(EQUAL, EQUAL_LONG))
def test_zero_follows_megatron(layout: str, way: str, engine: str, directory: Path, megatron) -> None:
    config = with_engine(layout, directory, f"{engine}-{layout}-{way}", engine, **WAYS[way])
    assert set(train_on_ranks(layout, config)) == {0}
    got, wanted = records(config), megatron(layout, way)
    assert len(got) == STEPS
    tolerances = {
        "loss": LOSS,
        "grad_norm": NORM,
        "learning_rate": 1e-12,
        # A token between two experts may go either way.
        "expert_load_imbalance": 1e-2,
    }
    for key, tolerance in tolerances.items():
        values, expected = ([r[key] for r in run if key in r] for run in (got, wanted))
        assert values == pytest.approx(expected, rel=tolerance), key
    assert got[-1]["loss"] < got[0]["loss"] - 0.1


def test_twenty_steps(directory: Path) -> None:
    """To the end of the schedule, with validation."""
    runs = {}
    for engine in ("megatron", "zero2"):
        config = with_engine("ep2", directory, f"{engine}-20", engine, train={"stop_after": None})
        assert set(train_on_ranks("ep2", config)) == {0}
        runs[engine] = records(config)
    for key in ("loss", "valid_loss"):
        values, expected = ([r[key] for r in runs[engine] if key in r] for engine in ("zero2", "megatron"))
        assert values == pytest.approx(expected, rel=LOSS), key
    assert len(runs["zero2"]) == 20
    assert runs["zero2"][-1]["loss"] < runs["zero2"][0]["loss"] - 0.3


@pytest.mark.parametrize("engine", with_long(["zero2"], [("zero1",)]))
def test_half_precision(engine: str, directory: Path, megatron) -> None:
    """Gradients are the same sums in fp32; an update then rounds to the other bf16 number once in a while."""
    config = with_engine("ep2", directory, f"{engine}-bf16", engine, **WAYS["bf16"])
    assert set(train_on_ranks("ep2", config)) == {0}
    got, wanted = records(config), megatron("ep2", "bf16")
    # Before the first weight rounds the other way (under Megatron's two optimizers that is as early) all is equal.
    for key in ("loss", "grad_norm"):
        assert [r[key] for r in got[:3]] == pytest.approx([r[key] for r in wanted[:3]], rel=1e-5), key
    assert losses(config) == pytest.approx([r["loss"] for r in wanted], rel=LOSS)


RESUMES_LONG = ("one, dropout", "experts, bf16", "weights cut, dropout")
RESUMES = {
    "one, dropout": ("one", "zero1", DROPOUT),
    "experts, dropout": ("ep2", "zero2", DROPOUT),
    "weights cut, dropout": ("dp2", "zero3", {**DENSE, **DROPOUT}),
    "weights cut, bf16": ("dp2", "zero3", {**DENSE, **WAYS["bf16"], "altup": {"width": 1}}),
    "tensor, bf16": ("tp2-ep2", "zero1", WAYS["bf16"]),
    "experts, bf16": ("ep2", "zero2", WAYS["bf16"]),
}


@pytest.mark.parametrize(
    "way",
    with_long([way for way in RESUMES if way not in RESUMES_LONG], [(way,) for way in RESUMES_LONG]),
)
def test_resume_is_exact(way: str, directory: Path) -> None:
    layout, engine, sections = RESUMES[way]
    whole, cut = (with_engine(layout, directory, f"{way}-{name}", engine, **sections) for name in ("whole", "cut"))
    assert set(train_on_ranks(layout, whole)) == {0}
    assert set(train_on_ranks(layout, replace(cut, train=replace(cut.train, stop_after=CUT)))) == {0}
    assert set(train_on_ranks(layout, cut)) == {0}
    assert losses(cut) == losses(whole)
    assert len(losses(cut)) == STEPS


# (layout, engine) that begins and that goes on, what is trained, layout of the run that is left alone.
MOVES = [
    ("one", "megatron", "dp4-ep2-etp2", "zero2", "plain", "ep2"),
    ("dp2", "zero3", "one", "megatron", "dense", "dp2"),
]
MOVES_LONG = [
    ("tp2-ep2", "zero2", "tp2-pp2-ep2", "megatron", "plain", "ep2"),
    ("ep2", "zero2", "dp2", "zero1", "plain", "ep2"),
    ("one", "megatron", "tp2-ep1", "zero3", "dense", "dp2"),
    ("ep2", "megatron", "ep2", "zero1", "plain", "ep2"),
    ("ep2", "zero1", "ep2", "megatron", "plain", "ep2"),
    ("dp2", "zero1", "tp2-ep1", "zero2", "dense", "dp2"),
    ("tp2-ep1", "zero3", "dp2", "zero2", "dense", "dp2"),
    # In bf16 another layout rounds other sums, under either engine.
    ("ep2", "zero1", "ep2", "megatron", "bf16", "ep2"),
    ("ep2", "megatron", "ep2", "zero2", "bf16", "ep2"),
]


@pytest.mark.parametrize(("first", "engine", "then", "other", "way", "alone"), with_long(MOVES, MOVES_LONG))
def test_an_engine_goes_on_from_the_other(
    first: str, engine: str, then: str, other: str, way: str, alone: str, directory: Path, megatron
) -> None:
    name = f"{first}-{engine}-{then}-{other}-{way}"
    begun = with_engine(first, directory, name, engine, **WAYS[way])
    assert set(train_on_ranks(first, replace(begun, train=replace(begun.train, stop_after=CUT)))) == {0}
    going_on = with_engine(then, directory, name, other, **WAYS[way])
    assert set(train_on_ranks(then, going_on)) == {0}
    assert losses(going_on) == pytest.approx([r["loss"] for r in megatron(alone, way)], rel=LOSS)


@pytest.mark.parametrize(
    ("engine", "experts", "other", "other_experts"),
    [("megatron", "plain", "zero2", "torch experts"), ("zero1", "deepspeed experts", "megatron", "torch experts")],
)
def test_engine_and_experts_change_at_once(
    engine: str, experts: str, other: str, other_experts: str, directory: Path, megatron
) -> None:
    name = f"{engine}-{experts}-{other}-{other_experts}"
    begun = with_engine("ep2", directory, name, engine, **WAYS[experts])
    assert set(train_on_ranks("ep2", replace(begun, train=replace(begun.train, stop_after=CUT)))) == {0}
    going_on = with_engine("ep2", directory, name, other, **WAYS[other_experts])
    assert set(train_on_ranks("ep2", going_on)) == {0}
    assert losses(going_on) == pytest.approx([r["loss"] for r in megatron("ep2", "plain")], rel=LOSS)
