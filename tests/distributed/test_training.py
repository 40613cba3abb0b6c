"""One seed, one loss curve: 20 steps on real text under every layout, exact resume, and the golden curve."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from altup_moe.checkpoint.manifest import read_manifest, write_manifest
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.tensors import load_tensor
from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.exit_codes import EXIT_STOPPED
from altup_moe.config.load import save_config
from altup_moe.config.run_directory import checkpoints_dir
from altup_moe.data.document import Document
from altup_moe.data.prepare import prepare_tokens
from altup_moe.data.tokenizer import train_bpe
from altup_moe.train.resume import find_resume_point
from tests.distributed.cases import with_long
from tests.distributed.ranks import run_fresh_ranks
from tests.distributed.runs import losses, records, routing_lines, text_run, train_on_ranks, train_quietly

pytestmark = pytest.mark.distributed

TOLERANCE = 1e-4
PROMISED = ["dp2", "tp2", "pp2", "pp2-vpp2", "ep2", "tp2-ep1", "tp2-pp2-ep2", "cp2", "pp2-uneven"]
WAYS = {
    "plain": {},
    "recompute": {"train": {"recompute": "full"}},
    "distributed optimizer": {"parallel": {"distributed_optimizer": True}},
    # Groups of parameters with rates of their own, of which not every rank has all.
    "distributed optimizer, mup": {
        "parallel": {"distributed_optimizer": True},
        "optim": {"parametrization": "mup", "mup_base_hidden_size": 16, "mup_base_num_layers": 2},
    },
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def one_rank(directory: Path):
    """The run on one rank, by width and optim; trained once. Of K = 2 all 20 steps, of the others the first 8."""
    known: dict[str, RunConfig] = {}

    def train_once(width: int, optim: dict) -> RunConfig:
        name = f"one-{width}{'-' if optim else ''}{optim.get('parametrization', '')}"
        if name not in known:
            early = BEGINNING[width != 2 or bool(optim)]
            config = text_run("one", directory, name, altup={"width": width}, train=early, optim=optim)
            assert train_on_ranks("one", config) == [0]
            known[name] = config
        return known[name]

    return train_once


BEGINNING: dict[bool, dict] = {False: {}, True: {"stop_after": 8}}
"""Whether a run ends early: where its layout was followed to the end at another width, 8 steps tell what is wrong."""

# K = 2 in every layout: two to the end, the others for 8 steps (`make test-all`: to the end). Other widths and ways on
# one or two: gradients of all widths in all layouts are compared in test_gradients.py.
TO_THE_END = ["tp2-pp2-ep2", "cp2"]
FOLLOWED = [
    *((layout, 2, "plain", layout not in TO_THE_END) for layout in PROMISED),
    *(("tp2-pp2-ep2", width, way, True) for width, way in ((4, "plain"), (2, "distributed optimizer, mup"))),
    ("ep2", 2, "recompute", True),
]
FOLLOWED_LONG = [
    *((layout, 2, "plain", False) for layout in PROMISED if layout not in TO_THE_END),
    *(("ep2", width, way, True) for width, way in ((1, "plain"), (4, "plain"), (2, "distributed optimizer"))),
    *(("tp2-pp2-ep2", 2, way, True) for way in ("distributed optimizer", "recompute")),
    ("tp2-pp2-ep2", 1, "plain", True),
]


@pytest.mark.parametrize(("layout", "width", "way", "early"), with_long(FOLLOWED, FOLLOWED_LONG))
def test_layout_follows_one_rank(layout: str, width: int, way: str, early: bool, directory: Path, one_rank) -> None:
    name = f"{layout}-{width}-{way.replace(' ', '-').replace(',', '')}-{early}"
    sections = {"altup": {"width": width}, **WAYS[way]}
    sections["train"] = {**sections.get("train", {}), **BEGINNING[early]}
    config = text_run(layout, directory, name, **sections)
    assert set(train_on_ranks(layout, config)) == {0}
    reference = one_rank(width, WAYS[way].get("optim", {}))
    got, expected = records(config), records(reference)
    assert len(got) == (8 if early else 20)
    for key in ("loss", "grad_norm") if early else ("loss", "grad_norm", "valid_loss"):
        values, wanted = ([r[key] for r in run if key in r] for run in (got, expected[: len(got)]))
        assert values == pytest.approx(wanted, rel=TOLERANCE), key
    # The curve goes down: equal losses of a model that does not train would say nothing.
    assert got[-1]["loss"] < got[0]["loss"] - (0.1 if early else 0.3)
    # Routes of all ranks and stages, a line a step (a later step may route a token otherwise, by rounding).
    ours, theirs = routing_lines(config), routing_lines(reference)
    assert ours[0] == theirs[0]
    assert [(line["step"], line["steps"]) for line in ours] == [(n, 1) for n in range(1, len(got) + 1)]
    sizes = [[(len(layer), sum(layer)) for layer in line["routes"]] for line in (*ours, theirs[0])]
    assert all(line == sizes[-1] for line in sizes)
    assert {size for size, _ in sizes[0]} == {0, config.moe.num_experts}


FORMS: dict[str, dict] = {
    "attention": {"model": {"qk_layernorm": True, "kv_channels": 12, "rotary_scaling_factor": 8.0}},
    "dynamic": {"altup": {"variant": "dynamic", "width": 4}},
    "hc": {"altup": {"variant": "hc", "width": 4}},
    "mhc": {"altup": {"variant": "mhc", "width": 4, "level": "branch"}},
    "mhc_single_pass": {"altup": {"variant": "mhc_single_pass", "width": 4, "level": "branch"}},
    "gated_residual": {"altup": {"variant": "gated_residual", "level": "branch"}},
    "partial": {"moe": {"partial": True, "num_experts": 16, "top_k": 1, "ffn_hidden_size": 16, "layer_freq": 1}},
}


# Twenty steps each, through stages that hand on the next input too, and every other kind of rank.
NEWER = [("mhc", "tp2-pp2-ep2"), ("mhc_single_pass", "pp2-vpp2"), ("gated_residual", "cp2")]
FORMED = [("attention", "tp2-pp2-ep2"), ("dynamic", "tp2-ep1"), ("hc", "pp2"), ("partial", "ep2"), *NEWER]


@pytest.mark.parametrize(("form", "layout"), with_long(FORMED, [("attention", "cp2"), ("dynamic", "pp2")]))
def test_a_form_follows_one_rank(form: str, layout: str, directory: Path) -> None:
    sections = {**FORMS[form], "train": BEGINNING[(form, layout) not in NEWER]}
    one, split = (text_run(name, directory, f"{form}-{name}", **sections) for name in ("one", layout))
    for name, config in (("one", one), (layout, split)):
        if not (Path(config.log.run_dir) / "metrics.jsonl").exists():
            assert set(train_on_ranks(name, config)) == {0}
    assert losses(split) == pytest.approx(losses(one), rel=TOLERANCE)
    assert len(losses(split)) == (20 if (form, layout) in NEWER else 8)
    assert losses(one)[-1] < losses(one)[0] - 0.1


RESUMES = {
    "fp32, dropout": {"model": {"hidden_dropout": 0.1, "attention_dropout": 0.1}},
    "bf16": {"train": {"precision": "bf16"}},
    "distributed optimizer": {"parallel": {"distributed_optimizer": True}},
    "dynamic, bf16": {"altup": {"variant": "dynamic"}, "train": {"precision": "bf16"}},
}


# Each way once; the hardest layout has all that a checkpoint can hold.
RESUMED = [
    ("fp32, dropout", "one"),
    ("distributed optimizer", "ep2"),
    *((way, "tp2-pp2-ep2") for way in ("fp32, dropout", "dynamic, bf16")),
]
RESUMED_LONG = [
    (way, layout) for way in RESUMES for layout in ("one", "ep2", "tp2-pp2-ep2") if (way, layout) not in RESUMED
]


@pytest.mark.parametrize(("way", "layout"), with_long(RESUMED, RESUMED_LONG))
def test_resume_is_exact(way: str, layout: str, directory: Path) -> None:
    name = f"resume-{layout}-{way.replace(' ', '-').replace(',', '')}"
    sections = {**RESUMES[way], "train": {**RESUMES[way].get("train", {}), "steps": 6}}
    whole, cut = (text_run(layout, directory, f"{name}-{end}", **sections) for end in ("whole", "cut"))
    assert set(train_on_ranks(layout, whole)) == {0}
    assert set(train_on_ranks(layout, replace(cut, train=replace(cut.train, stop_after=3)))) == {0}
    assert set(train_on_ranks(layout, cut)) == {0}
    assert losses(cut) == losses(whole)
    assert records(cut)[-1]["valid_loss"] == records(whole)[-1]["valid_loss"]


def test_a_finished_run_gets_longer_and_says_what_it_changed(directory: Path) -> None:
    """Without a decay to stretch, the longer run is the one that was that long from the start; a rate is recorded."""
    optim = {"schedule": "constant"}
    whole, run = (text_run("one", directory, f"longer-{n}", optim=optim, train={"steps": n}) for n in (8, 5))
    assert train_on_ranks("one", whole) == [0]
    assert train_on_ranks("one", run) == [0]
    assert train_on_ranks("one", run) == [0]
    assert len(records(run)) == 5
    longer = replace(run, train=replace(run.train, steps=8))
    assert train_on_ranks("one", longer) == [0]
    assert losses(longer) == losses(whole)
    assert [record.get("changed") for record in records(longer)] == [*[None] * 5, {"train.steps": [5, 8]}, None, None]
    starts = [json.loads(line) for line in (Path(run.log.run_dir) / "starts.jsonl").read_text().splitlines()]
    assert [(start["step"], start["checkpoint"]) for start in starts] == [(0, None), (5, "step_00000005")]
    assert (starts[0]["layout"], starts[0]["device"]) == ("1 rank", "cpu")
    faster = replace(longer, optim=replace(run.optim, learning_rate=0.03), train=replace(run.train, steps=9))
    assert train_on_ranks("one", faster) == [0]
    rate = {"optim.learning_rate": [run.optim.learning_rate, 0.03]}
    assert records(faster)[8]["changed"] == {**rate, "train.steps": [8, 9]}
    assert records(faster)[8]["learning_rate"] == 0.03
    with Checkpoint(checkpoints_dir(run.log.run_dir) / "step_00000009") as checkpoint:
        assert checkpoint.manifest.changes == [
            {"step": 5, "keys": {"train.steps": [5, 8]}},
            {"step": 8, "keys": {**rate, "train.steps": [8, 9]}},
        ]


def test_epochs_end_alike_in_a_run_that_is_cut_and_in_a_longer_one(directory: Path) -> None:
    """An epoch is a step and a half: neither the end of one nor another number of steps changes what comes next."""
    bpe = train_bpe(["the cat sat on the mat"], 290, directory / "small-bpe")
    texts = (Document(str(n), f"{n * 37} the cat {n} sat on {n % 7} mats") for n in range(30))
    manifest = prepare_tokens(texts, bpe, directory / "small", "mine")
    data, optim = {"corpus": str(directory / "small"), "valid_fraction": 0.2}, {"schedule": "constant"}
    whole, cut, short = (
        text_run("one", directory, f"epochs-{name}", data=data, optim=optim, train={"steps": steps, "eval_samples": 1})
        for name, steps in (("whole", 8), ("cut", 8), ("short", 5))
    )
    samples = 0.8 * manifest.tokens / whole.model.seq_length
    assert 1 < samples / whole.train.global_batch_size < 2
    assert train_on_ranks("one", whole) == [0]
    assert train_on_ranks("one", replace(cut, train=replace(cut.train, stop_after=3))) == [0]
    assert train_on_ranks("one", cut) == [0]
    assert train_on_ranks("one", short) == [0]
    assert losses(cut) == losses(whole)
    assert losses(short) == losses(whole)[:5]
    with Checkpoint(checkpoints_dir(short.log.run_dir) / "step_00000005") as checkpoint:
        assert checkpoint.config.data.shuffle == "epoch"
    assert train_on_ranks("one", replace(short, train=replace(short.train, steps=8))) == [0]
    assert losses(short) == losses(whole)
    # A checkpoint without the key is one of the versions that shuffled all epochs together.
    old_data = {**data, "shuffle": "run"}
    old, old_cut = (
        text_run("one", directory, f"epochs-old-{name}", data=old_data, optim=optim, train=dict(vars(cut.train)))
        for name in ("whole", "cut")
    )
    assert train_on_ranks("one", old) == [0]
    assert train_on_ranks("one", replace(old_cut, train=replace(cut.train, stop_after=3))) == [0]
    step = checkpoints_dir(old_cut.log.run_dir) / "step_00000003"
    written = read_manifest(step)
    del written.config["data"]["shuffle"]
    write_manifest(step, written)
    assert train_on_ranks("one", replace(old_cut, data=replace(old_cut.data, shuffle=None))) == [0]
    assert losses(old_cut) == losses(old) != losses(whole)


def test_weights_of_a_run_without_routers_state_begin_one_that_has_it(tmp_path: Path) -> None:
    """Loads and biases begin as in any new run; a source whose routing depends on its biases is not taken without."""
    moe = {"score_function": "sigmoid"}
    source = text_run("one", tmp_path, "source", moe=moe, train={"stop_after": 1})
    assert train_on_ranks("one", source) == [0]
    state = {**moe, "load_balancing_type": "global_aux_loss", "expert_bias_update_rate": 0.01}
    target = text_run("one", tmp_path, "target", moe=state, train={"stop_after": 1})
    start = replace(target.checkpoint, initial_load_path=source.log.run_dir)
    assert train_on_ranks("one", replace(target, checkpoint=start)) == [0]
    # Both begin with the same samples, and the source has taken a step on them.
    assert losses(target)[0] < losses(source)[0]
    without = text_run("one", tmp_path, "without", moe=moe)
    back = replace(without, checkpoint=replace(without.checkpoint, initial_load_path=target.log.run_dir))
    with pytest.raises(ConfigError, match=r"expert_bias_update_rate=0\.0: the routing of .* depends on its biases"):
        find_resume_point(back)


def test_a_second_run_in_the_directory_is_refused_while_the_first_one_is_there(tmp_path: Path) -> None:
    """The one that trains is not disturbed: its directory has what a run alone there leaves."""
    runs = [text_run("one", tmp_path, "both", train={"steps": 40, "seed": seed}) for seed in (1234, 7)]
    alone = text_run("one", tmp_path, "alone", train={"steps": 40})
    for config in runs:
        save_config(config, tmp_path / f"{config.train.seed}-{Path(config.log.run_dir).name}.yaml")
    first = _started(tmp_path / "1234-both.yaml")
    deadline = time.monotonic() + 60
    while not (Path(runs[0].log.run_dir) / "lock").is_file():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    second = _started(tmp_path / "7-both.yaml", stderr=subprocess.PIPE)
    said = second.communicate(timeout=60)[1].decode()
    assert second.returncode == 2
    holder = rf"{re.escape(runs[0].log.run_dir)}: another training runs here \(process {first.pid} on \S+\)"
    assert re.fullmatch(rf"altup-moe: error: {holder}; wait for it, or name another log\.run_dir\n", said)
    assert first.wait(timeout=100) == 0
    assert train_on_ranks("one", alone) == [0]
    assert losses(runs[0]) == losses(alone)


def _train_with_slow_copies(config) -> int:
    from altup_moe.checkpoint.staging_buffer import StagingBuffer

    stage = StagingBuffer.stage

    def slow(staging: StagingBuffer, wanted: dict) -> dict:
        time.sleep(0.3)  # several times a step
        return stage(staging, wanted)

    StagingBuffer.stage = slow
    return train_quietly(config, 1)


def test_a_checkpoint_has_nothing_of_the_steps_after_it(directory: Path) -> None:
    """Steps go on while weights and moments are copied, and update them only afterwards."""
    way = {"train": {"steps": 4}, "altup": {"width": 2}}
    slow, still = (
        text_run(
            "one", directory, name, **way, checkpoint={"save_interval": 1, "keep": 9, "asynchronous": name == "slow"}
        )
        for name in ("slow", "still")
    )
    assert run_fresh_ranks(1, _train_with_slow_copies, slow) == [0]
    assert train_on_ranks("one", still) == [0]
    for step in range(1, 5):
        place = f"checkpoints/step_{step:08d}"
        with Checkpoint(Path(slow.log.run_dir) / place) as a, Checkpoint(Path(still.log.run_dir) / place) as b:
            for name in b.manifest.tensors:
                assert torch.equal(load_tensor(a, name), load_tensor(b, name)), (step, name)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.long)])
def test_a_signal_saves_and_the_same_run_goes_on(number: int, tmp_path: Path) -> None:
    whole, cut = (text_run("one", tmp_path, name, train={"steps": 40}) for name in ("whole", "cut"))
    save_config(cut, Path(f"{cut.log.run_dir}.yaml"))
    assert train_on_ranks("one", whole) == [0]
    process = _started(Path(f"{cut.log.run_dir}.yaml"))
    metrics = Path(cut.log.run_dir) / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.is_file() and metrics.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(number)
    assert process.wait(timeout=60) == EXIT_STOPPED
    assert 3 <= len(losses(cut)) < 40
    assert train_on_ranks("one", cut) == [0]
    assert losses(cut) == losses(whole)


def _started(file: Path, stderr: int | None = None) -> subprocess.Popen:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, "-m", "altup_moe.cli", "train", str(file)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stderr)


def test_golden_curve(directory: Path, one_rank) -> None:
    """Losses as recorded when the model was last meant to change; the file says how to record them again."""
    golden = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())
    version = re.match(r"\d+\.\d+\.\d+", sys.version)
    expected = golden["losses"].get(version.group() if version else "")
    if expected is None:
        # The corpus is the interpreter's own documentation, another one in every release.
        assert losses(one_rank(2, {}))[0] == pytest.approx(golden["first"], rel=0.05)
        return
    assert losses(one_rank(2, {})) == pytest.approx(expected, rel=TOLERANCE)


# Wide enough that matrices are factored; rates are shares of a tensor's size.
ADAFACTOR = {
    "model": {"hidden_size": 128, "num_attention_heads": 4, "num_query_groups": 2, "ffn_hidden_size": 160},
    "moe": {"ffn_hidden_size": 128},
    "optim": {"optimizer": "adafactor", "learning_rate": 0.02, "min_learning_rate": 0.0, "schedule": "inverse_sqrt"},
}


def test_adafactor_follows_one_rank_and_resumes_under_another_layout(directory: Path) -> None:
    """Stages, experts and data on ranks: one curve. A run cut after step 4 goes on exactly, elsewhere to 1e-4."""
    train = {"steps": 8, "eval_interval": 0}
    one = text_run("one", directory, "adafactor-one", **ADAFACTOR, train=train)
    assert train_on_ranks("one", one) == [0]
    expected = losses(one)
    assert expected[-1] < expected[0] - 0.1
    kinds = {
        name.partition("/")[0]
        for name in Checkpoint(checkpoints_dir(one.log.run_dir) / "step_00000008").manifest.tensors
    }
    assert kinds == {"weights", "exp_avg_sq", "exp_avg_sq_row", "exp_avg_sq_col", "rng"}
    for layout in ("pp2", "ep2"):
        config = text_run(layout, directory, f"adafactor-{layout}", **ADAFACTOR, train=train)
        assert set(train_on_ranks(layout, config)) == {0}
        assert losses(config) == pytest.approx(expected, rel=TOLERANCE)
    for layout, tolerance in (("one", 0.0), ("pp2", TOLERANCE)):
        cut = text_run("one", directory, f"adafactor-cut-{layout}", **ADAFACTOR, train={**train, "stop_after": 4})
        assert train_on_ranks("one", cut) == [0]
        rest = text_run(layout, directory, f"adafactor-cut-{layout}", **ADAFACTOR, train=train)
        assert set(train_on_ranks(layout, rest)) == {0}
        assert losses(rest) == pytest.approx(expected, rel=tolerance, abs=0)


def test_a_mixture_is_one_curve_on_two_ranks_and_resumes_exactly(directory: Path) -> None:
    """Corrupted spans of a corpus and reviews of a task, every other sample."""
    reviews = directory / "reviews"
    reviews.mkdir()
    for split in ("train", "validation"):
        rows = ({"sentence": f"film {n}", "label": n % 2} for n in range(7))
        (reviews / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {
        "objective": "span_corruption",
        "sentinels": 10,
        "mixture": ("python-docs=1", "sst2=1"),
        "task_files": (f"sst2={reviews}",),
    }
    sections = {"model": {"vocab_size": 330}, "data": data}
    one = text_run("one", directory, "mixture-one", **sections, train={"steps": 6})
    two = text_run("dp2", directory, "mixture-dp2", **sections, train={"steps": 6})
    cut = text_run("one", directory, "mixture-cut", **sections, train={"steps": 6, "stop_after": 3})
    rest = text_run("one", directory, "mixture-cut", **sections, train={"steps": 6})
    for layout, config in (("one", one), ("dp2", two), ("one", cut), ("one", rest)):
        assert set(train_on_ranks(layout, config)) == {0}
    assert losses(two) == pytest.approx(losses(one), rel=TOLERANCE)
    assert losses(rest) == losses(one)
    assert records(two)[-1]["valid_loss"] == pytest.approx(records(one)[-1]["valid_loss"], rel=TOLERANCE)
