"""Resharding files: any layout to any layout keeps every byte, and each rank's files hold what that rank holds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import altup_moe.commands.reshard as tool
from altup_moe import cli
from altup_moe.checkpoint.manifest import read_manifest
from altup_moe.checkpoint.reshard import plan_resharding, write_resharded
from altup_moe.checkpoint.slices import intersect, num_elements
from altup_moe.checkpoint.source import Checkpoint
from altup_moe.checkpoint.store import find_checkpoint, latest_checkpoint
from altup_moe.checkpoint.write import FILE_BYTES
from altup_moe.commands import inspect as inspect_checkpoint
from altup_moe.config import RunConfig
from altup_moe.config.checks import check_config
from altup_moe.config.load import from_dict, load_config, save_config
from altup_moe.config.run_directory import checkpoints_dir
from altup_moe.parallel.rank_coordinates import all_rank_coordinates, held_tensors
from tests.checkpoints import head, random_tensors, stored_bytes, write_tensors
from tests.distributed.cases import LAYOUTS, small, with_layout, world_size

ROOT = Path(__file__).parents[3]
FORMS: dict[str, tuple[torch.dtype, dict[str, dict[str, Any]]]] = {
    "fp32": (torch.float32, {}),
    "bf16, tied, shared expert, bias": (
        torch.bfloat16,
        {
            "model": {"share_embeddings_and_output_weights": True},
            "moe": {
                "layer_freq": 1,
                "shared_expert_size": 16,
                "score_function": "sigmoid",
                "expert_bias_update_rate": 0.01,
            },
        },
    ),
}
HARDEST = "bf16, tied, shared expert, bias"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory):
    """(form, layout) -> a checkpoint's directory, written under that layout, with random streams."""
    root = tmp_path_factory.mktemp("saved")

    @cache
    def whole(form: str) -> Path:
        dtype, sections = FORMS[form]
        config = small("one", **sections)
        tensors = random_tensors(config, dtype=dtype)
        tensors["rng/00000/cpu"] = torch.arange(9, dtype=torch.uint8)
        return write_tensors(root / form / "whole", head(config, 7), tensors)

    @cache
    def under(form: str, layout: str) -> Path:
        return reshard(whole(form), layout, root / form / layout)

    return under


def reshard(source: Path, layout: str, run_dir: Path, distributed: bool = False) -> Path:
    with Checkpoint(source) as checkpoint:
        config = with_layout(checkpoint.config, layout)
        config = replace(config, parallel=replace(config.parallel, distributed_optimizer=distributed))
        check_config(config, world_size(layout))
        return write_resharded(
            checkpoint, plan_resharding(checkpoint, config, world_size(layout)), checkpoints_dir(run_dir)
        )


def check_ranks(directory: Path) -> None:
    """Every piece of a rank's files lies in what the rank holds."""
    manifest = read_manifest(directory)
    config = from_dict(manifest.config)
    held: dict[tuple[int, str], list] = {}
    for coordinates in all_rank_coordinates(config.parallel, manifest.world_size):
        for tensor in held_tensors(config, coordinates):
            for piece in tensor.pieces:
                held.setdefault((coordinates.rank, piece.name), []).append(piece.global_slice)
    writers = set()
    for stored, tensor in manifest.tensors.items():
        for piece in tensor.pieces:
            rank = int(piece.file.split("_")[1])
            slices = set(held.get((rank, stored.partition("/")[2]), []))
            common = [both for tensor_slice in slices if (both := intersect(tensor_slice, piece.tensor_slice))]
            assert sum(map(num_elements, common)) == num_elements(piece.tensor_slice), (stored, piece)
            writers.add(rank)
    assert writers == set(range(manifest.world_size))


@pytest.mark.slow
def _some(layouts: Iterable[str], source: str) -> list[str]:
    """Five of the layouts, other ones for every source, so that each is the target of five."""
    names = list(layouts)
    at = names.index(source)
    return [names[(at + step) % len(names)] for step in (0, 1, 4, 7, 11)]


@pytest.mark.parametrize(("source", "form"), [*((name, HARDEST) for name in LAYOUTS), ("tp2-pp2-ep2", "fp32")])
def test_any_layout_to_any_layout(saved, tmp_path: Path, source: str, form: str) -> None:
    expected = stored_bytes(saved(form, "one"))
    directory = saved(form, source)
    check_ranks(directory)
    assert stored_bytes(directory) == expected
    for target in _some(LAYOUTS, source):
        written = reshard(directory, target, tmp_path / target, distributed=True)
        check_ranks(written)
        assert stored_bytes(written) == expected
        assert read_manifest(written).config["parallel"]["distributed_optimizer"] is True


def test_work_is_shared_evenly(saved) -> None:
    """Replicas are written once, by whichever rank has least: no rank of eight writes twice the mean."""
    with Checkpoint(saved("fp32", "one")) as source:
        config = replace(source.config, parallel=replace(source.config.parallel, pipeline=2, data=4))
        held = plan_resharding(source, config, 8).rank_bytes
    assert sum(held) == sum(map(len, stored_bytes(saved("fp32", "one")).values()))
    assert max(held) < 1.2 * sum(held) / 8


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory of two ranks, with all that a run leaves."""
    source = tmp_path / "old"
    config = small("tp2", train={"micro_batch_size": 2})
    config = replace(config, log=replace(config.log, run_dir=str(source)))
    tensors = random_tensors(config)
    tensors["rng/00001/cpu"] = torch.arange(9, dtype=torch.uint8)
    write_tensors(source, head(config, 7, world_size=2), tensors)
    save_config(config, source / "config.yaml")
    (source / "metrics.jsonl").write_text('{"step": 7}\n')
    (source / "tokenizer").mkdir()
    (source / "tokenizer" / "tokenizer.json").write_text("{}")
    (source / "tensorboard").mkdir()
    return source


def run(*arguments: object) -> int:
    return cli.main(["reshard", *map(str, arguments)])


def test_another_micro_batch_is_recorded(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The layout changes nothing that is computed; a micro-batch does (capacity, balance losses)."""
    other, same = run_dir.parent / "other", run_dir.parent / "same"
    assert run(run_dir, other, "--micro-batch-size", 4) == 0
    assert run(run_dir, same, "--pipeline", 2) == 0
    recorded = [{"step": 7, "keys": {"train.micro_batch_size": [2, 4]}}]
    assert [read_manifest(find_checkpoint(new)).changes for new in (other, same)] == [recorded, []]
    capsys.readouterr()
    assert inspect_checkpoint.main([str(other)]) == 0
    assert "changed after step 7: train.micro_batch_size 2 -> 4" in capsys.readouterr().out


def left(run_dir: Path) -> list[str]:
    return sorted(path.name for path in run_dir.parent.iterdir())


def test_a_run_directory_that_can_be_gone_on_with(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = run_dir.parent / "new"
    assert run(run_dir, new, "--pipeline", 2, "--expert", 2, "--verify") == 0
    old_config, config = load_config(run_dir / "config.yaml"), load_config(new / "config.yaml")
    assert (config.parallel.tensor, config.parallel.pipeline, config.parallel.expert) == (1, 2, 2)
    assert config.log.run_dir == str(new)
    assert replace(config, parallel=old_config.parallel, log=old_config.log) == old_config
    assert sorted(path.name for path in new.iterdir()) == ["checkpoints", "config.yaml", "metrics.jsonl", "tokenizer"]
    assert (new / "tokenizer" / "tokenizer.json").read_text() == "{}"
    directory = latest_checkpoint(new)
    assert directory == new / "checkpoints" / "step_00000007"
    old, manifest = read_manifest(find_checkpoint(run_dir)), read_manifest(directory)
    assert (manifest.world_size, manifest.config) == (4, config.to_dict())
    for field in ("step", "consumed_samples", "skipped_steps", "optimizer_steps", "scheduler_steps"):
        assert getattr(manifest, field) == getattr(old, field)
    assert stored_bytes(directory) == stored_bytes(find_checkpoint(run_dir))
    printed = capsys.readouterr().out
    assert "saved by tensor 2, expert tensor 2 on 2 ranks" in printed
    assert "pipeline 2, expert 2, data 2 on 4 ranks" in printed
    assert "1 state of random streams" in printed
    assert f"{len(stored_bytes(directory))} tensors are the same in both" in printed
    assert "peak memory" in printed
    assert left(run_dir) == ["new", "old"]


def test_a_checkpoint_as_source(run_dir: Path) -> None:
    """Inside a run directory what stands beside it goes along; alone there is nothing."""
    alone = run_dir.parent / "alone"
    shutil.copytree(find_checkpoint(run_dir), alone)
    for source, along in ((find_checkpoint(run_dir), ["metrics.jsonl", "tokenizer"]), (alone, [])):
        new = run_dir.parent / f"from {source.name}"
        assert run(source, new) == 0
        assert sorted(path.name for path in new.iterdir()) == sorted(["checkpoints", "config.yaml", *along])


def test_json(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(run_dir, run_dir.parent / "new", "--tensor", 2, "--json", "--verify") == 0
    printed = json.loads(capsys.readouterr().out)
    names = stored_bytes(find_checkpoint(run_dir)).keys()
    assert printed["sha256"].keys() == names
    assert printed["different"] == []
    assert printed["left_out"] == ["rng/00001/cpu"]
    files = read_manifest(find_checkpoint(run_dir.parent / "new")).files
    assert printed["files"].keys() == files.keys()
    assert sum(printed["rank_bytes"]) == printed["bytes"] == sum(printed["files"].values())


def test_a_dry_run_writes_nothing(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(run_dir, run_dir.parent / "new", "--expert", 4, "--dry-run") == 0
    assert "expert 4, data 4 on 4 ranks" in capsys.readouterr().out
    assert left(run_dir) == ["old"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tensor", "3"], "--tensor=3: must divide model.num_attention_heads (4); 1, 2 would fit"),
        (["--tensor", "0"], "--tensor=0: must be at least 1"),
        (["--pipeline", "3"], "--pipeline=3: must divide model.num_layers (4), or name --first-stage-layers"),
        (["--first-stage-layers", "1"], "--first-stage-layers=1: needs --pipeline above 1"),
        (["--pipeline", "2", "--last-stage-layers", "4"], "--last-stage-layers=4: the other layers"),
        (["--pipeline", "2", "--virtual-pipeline", "3"], "--virtual-pipeline=3: must divide the layers"),
        (["--pipeline=2", "--virtual-pipeline=2", "--data=4"], "--virtual-pipeline=2: train.global_batch_size=8"),
        (["--expert", "3"], "--expert=3: must divide moe.num_experts (4)"),
        (["--expert-tensor", "5"], "--expert-tensor=5: must divide moe.ffn_hidden_size (24)"),
        (["--context", "3"], "--context=3: "),
        (
            ["--data", "3"],
            "--data=3: train.global_batch_size=8: must be a multiple of train.micro_batch_size (2) * data-parallel "
            "ranks (3); --data 1, 2, 4 would fit\n",
        ),
        (["--tp", "2"], "--tp: unknown option; nearest is --tensor"),
        (["--data", "2", "--expert", "4"], "--expert=4: --expert * expert_tensor * pipeline (4) must divide the world"),
        (["--micro-batch-size", "0"], "--micro-batch-size=0: must be at least 1"),
        (["--tensors", "2"], "--tensors: unknown option; nearest is --tensor"),
        (["--tensor", "two"], "--tensor='two': expects a whole number"),
        (["more"], "'more': unexpected word"),
    ],
)
def test_what_does_not_fit_names_the_flag(
    run_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(run_dir, run_dir.parent / "new", *arguments) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"altup-moe: error: {message}")
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert left(run_dir) == ["old"]


def test_a_smaller_micro_batch_makes_room_for_data_ranks(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = run_dir.parent / "new"
    assert run(run_dir, new, "--data", 8) == 2
    assert "--data 1, 2, 4 or --micro-batch-size 1 would fit" in capsys.readouterr().err
    assert run(run_dir, new, "--data", 8, "--micro-batch-size", 1) == 0
    config = load_config(new / "config.yaml")
    assert (config.parallel.data, config.train.micro_batch_size) == (8, 1)


def test_other_errors(run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    new = run_dir.parent / "new"

    def problem(*arguments: object) -> str:
        assert run(*arguments) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    assert "is missing" in problem(run_dir)
    assert "there is no such directory; type altup-moe " in problem(run_dir.parent / "nothing", new)
    assert "exists" in problem(run_dir, run_dir)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 10**6))
    assert "1 MB are free" in problem(run_dir, new)
    monkeypatch.undo()
    file = next(find_checkpoint(run_dir).glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    line = problem(run_dir, new)
    assert file.name in line
    assert "SHA-256" in line
    assert left(run_dir) == ["old"]
    assert run(run_dir, new, "--no-verify-source") == 0
    capsys.readouterr()
    file.unlink()
    assert "is missing" in problem(run_dir, run_dir.parent / "newer")


def test_a_proof_that_fails_leaves_nothing(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(source: Checkpoint, *rest: Any) -> Path:
        read = source.read
        monkeypatch.setattr(
            source, "read", lambda name, tensor_slice: read(name, tensor_slice) ^ (name == "exp_avg/model.norm.weight")
        )
        try:
            return write_resharded(source, *rest)
        finally:
            monkeypatch.setattr(source, "read", read)

    monkeypatch.setattr(tool, "write_resharded", wrong)
    assert run(run_dir, run_dir.parent / "new", "--verify") == 1
    assert "exp_avg/model.norm.weight differs" in capsys.readouterr().err
    assert left(run_dir) == ["old"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_leaves_nothing(run_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    # A process in the background is born without Python's own handler of Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        _interrupt(run_dir, monkeypatch, number)
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(run_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    read, count = Checkpoint.read, iter(range(1000))

    def stopped(self: Checkpoint, name: str, tensor_slice: Any = None) -> Any:
        if next(count) == 20:
            os.kill(os.getpid(), number)
        return read(self, name, tensor_slice)

    monkeypatch.setattr(Checkpoint, "read", stopped)
    if number == signal.SIGTERM:
        with pytest.raises(SystemExit) as ending:
            run(run_dir, run_dir.parent / "new")
        assert ending.value.code == 128 + signal.SIGTERM
    else:
        assert run(run_dir, run_dir.parent / "new") == 130
    assert next(count) > 20
    assert left(run_dir) == ["old"]


def test_torch_is_not_imported_and_memory_is_bounded(tmp_path: Path) -> None:
    """A process of its own: six tensors of 34 MB, of which it may hold little more than one."""
    model = {"vocab_size": 1 << 16, "hidden_size": 128, "num_layers": 1}
    config: RunConfig = small("one", model=model, moe={"num_experts": 0})
    write_tensors(tmp_path / "old", head(config, 7), random_tensors(config))
    code = (
        "import sys; from altup_moe.cli import main; code = main(['reshard', *sys.argv[1:]]);"
        "assert not {'torch', 'megatron', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    paths = (str(tmp_path / "old"), str(tmp_path / "new"))
    command = [sys.executable, "-c", code, *paths, "--tensor", "2", "--verify", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["largest_tensor_bytes"] == (1 << 16) * 128 * 4 < FILE_BYTES
    assert told["bytes"] > 6 * told["largest_tensor_bytes"]
    assert told["peak_memory_bytes"] < 2 * told["largest_tensor_bytes"] + 100e6
