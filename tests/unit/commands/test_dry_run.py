"""`altup-moe train CONFIG --dry-run`: what it says is what a run finds, and nothing is written."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from altup_moe.cli import main
from altup_moe.commands.dry_run_model import parameter_parts, rank_groups
from altup_moe.commands.dry_run_run import checkpoint_bytes
from altup_moe.commands.dry_run_section import spelled_duration
from altup_moe.config import LogConfig, RunConfig
from altup_moe.config.load import load_config, save_config
from altup_moe.config.locks import locked_directory
from altup_moe.parallel.counts import count_parameters
from altup_moe.parallel.parameter_names import global_shapes
from tests.checkpoints import head, random_tensors, write_tensors
from tests.unit.train.runs import tiny

CONFIGS = Path(__file__).parents[3] / "configs"
RUNS = sorted(
    path for path in CONFIGS.glob("*.yaml") if set(yaml.safe_load(path.read_text())) <= set(RunConfig().to_dict())
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, in which nothing may appear."""
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    return directory


def report(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """The JSON object of a dry run that could start."""
    assert main(["train", *map(str, words), "--dry-run", "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_shipped_configurations(path: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each starts on the ranks that it asks for; text and JSON say so, and the directory stays empty."""
    assert main(["train", str(path), "--dry-run", "--full"]) == 0
    text = capsys.readouterr().out
    found, config = report(capsys, path), load_config(path)
    assert list(elsewhere.iterdir()) == []
    assert found["error"] is None
    # The first line of a shipped file says for how many ranks it is written.
    ranks = int(path.read_text().splitlines()[0].removeprefix("# world size:"))
    assert f"\nlayout         {found['layout']['ranks']} rank(s)" in text
    assert found["layout"]["ranks"] <= ranks
    assert ranks % found["layout"]["ranks"] == 0
    asked = report(capsys, path, "--ranks", ranks)
    assert asked["layout"]["ranks"] == ranks
    if asked["plan"]["planned"] is not None:
        assert asked["plan"]["planned"]["fits"], "on 80 GB each"
    assert f"{found['model']['total']:,} parameters" in text
    assert f"the run starts anew in {config.log.run_dir}" in text
    everything = yaml.safe_dump(found["configuration"]["all"], sort_keys=False).splitlines()
    assert "\n".join(f"{'':15}{line}".rstrip() for line in everything) in text
    assert everything[0] == "model:"


def test_how_to_start_names_the_overrides(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without them the line would start another run than the one that was looked at."""
    words = ["quickstart", "--altup.correct", "delayed", "--log.run_dir", "my runs/one"]
    start = shlex.split(report(capsys, *words, "--ranks", "2")["layout"]["start"])
    assert start[-4:] == ["train", "quickstart", "--altup.correct=delayed", "--log.run_dir=my runs/one"]
    assert start[:5] == ["altup-moe", "launch", "torchrun", "--ranks-per-node", "2"]


def test_what_differs_from_the_defaults_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(CONFIGS / "quickstart.yaml"), "--optim.learning_rate", "0.5", "--data.mixture", "cb=1", "rte=2"]
    found = report(capsys, *words)["configuration"]
    assert found["differs"]["optim.learning_rate"] == 0.5
    assert "model.seq_length" not in found["differs"], "256 is the default"
    assert found["all"]["model"]["seq_length"] == 256
    assert "data.shuffle" not in found["differs"], "a start fills it in"
    assert found["all"]["data"]["shuffle"] == "epoch"
    assert main(["train", *words, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "optim.learning_rate        0.5  (default 0.001)" in text
    assert "[cb=1, rte=2]  (default [])" in text
    assert "altup stream of altup.width 2" in text, "a default that people do not expect"


def test_groups_are_those_that_megatron_makes() -> None:
    """TP 2 x PP 2 x DP 2 with EP 4, worked out by hand from Megatron's order of ranks: tensor, data, pipeline."""
    config = tiny(parallel={"tensor": 2, "pipeline": 2, "data": 2, "expert": 4})
    assert rank_groups(config, 8) == {
        "tensor": [(0, 1), (2, 3), (4, 5), (6, 7)],
        "data": [(0, 2), (1, 3), (4, 6), (5, 7)],
        "pipeline": [(0, 4), (1, 5), (2, 6), (3, 7)],
        "expert": [(0, 1, 2, 3), (4, 5, 6, 7)],
    }


@pytest.mark.parametrize("arch", ["gpt", "t5"])
def test_parts_are_the_whole_model(arch: str) -> None:
    model = {"arch": arch, "num_query_groups": 2, "share_embeddings_and_output_weights": False}
    config = tiny(model=model, moe={"shared_expert_size": 8})
    parts, shapes = parameter_parts(config), global_shapes(config)
    assert sum(parts.values()) == count_parameters(config).total
    assert parts["embedding"] == math.prod(shapes[config.model.architecture.embedding])
    assert parts["output layer"] == 300 * 16
    assert parts["experts"] == count_parameters(config).experts
    assert set(parts) == {"embedding", "output layer", "experts", "shared experts", "routers", "altup", "norms",
                          "attention", "mlp"}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--optim.optimizer", "adafactor"], "optim.optimizer='adafactor': is not planned yet; adamw would fit"),
        (["--sequence.stride", "2"], "sequence.stride=2: is not planned yet; 1 would fit"),
    ],
)
def test_what_is_not_planned_is_one_line(words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(CONFIGS / "quickstart.yaml"), *words, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert f"\nmemory, time   not planned: {reason}\ndata " in text


def test_the_plan_is_the_planner_s(capsys: pytest.CaptureFixture[str]) -> None:
    from altup_moe.plan.cluster import load_cluster
    from altup_moe.plan.step import plan_step

    path = CONFIGS / "interleaved_4rank.yaml"
    found = report(capsys, path, "--cluster", "a100x8")["plan"]["planned"]
    plan = plan_step(load_config(path), load_cluster("a100x8"), 4)
    assert (found["step_seconds"], found["peak_memory_bytes"]) == (plan.seconds, plan.peak_memory)
    assert (found["cluster"], found["cluster_assumed"]) == ("a100x8", False)


def written(tmp_path: Path, prefix: Path, **sections: dict[str, Any]) -> tuple[Path, RunConfig]:
    """A tiny run on prepared data, as a file."""
    config = tiny(**{"data": {"corpus": str(prefix)}, "optim": {"warmup_steps": 1}, **sections})
    config = replace(config, log=LogConfig(run_dir=str(tmp_path / "run")))
    save_config(config, tmp_path / "run.yaml")
    return tmp_path / "run.yaml", config


@pytest.mark.parametrize("objective", ["causal", "prefix", "span_corruption"])
def test_data_is_counted_as_a_run_counts_it(
    objective: str, tmp_path: Path, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from altup_moe.train.samples import open_samples

    sections = {"data": {"corpus": str(prefix), "objective": objective}}
    if objective == "span_corruption":  # the tokenizer of this data has no sentinels
        assert main(["train", str(written(tmp_path, prefix, **sections)[0]), "--dry-run"]) == 2
        out, err = capsys.readouterr()
        assert "refused: data.tokenizer=" in out
        assert err.startswith("altup-moe: error: data.tokenizer=")
        return
    path, config = written(tmp_path, prefix, **sections)
    (found,) = report(capsys, path)["data"]["found"]
    samples = open_samples(config, prefix)
    assert (found["train_samples"], found["valid_samples"]) == (len(samples.train), len(samples.valid))
    assert (found["fingerprint"], found["held_out"]) == (samples.fingerprint, samples.notes[0])
    assert (found["documents"], found["vocabulary"]) == (12, 280)
    assert report(capsys, path)["data"]["epochs"] == pytest.approx(3 * 4 / len(samples.train))


def test_a_corpus_that_was_prepared_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from altup_moe.train.mixture import run_samples

    config = tiny(data={"cache": str(tmp_path / "cache")})
    save_config(config, path := tmp_path / "run.yaml")
    (before,) = report(capsys, path)["data"]["found"]
    assert before["first"] == ["trains a BPE of 300 tokens", "tokenises the corpus"]
    samples = run_samples(config)
    (after,) = report(capsys, path)["data"]["found"]
    assert (after["first"], after["prefix"]) == ([], before["prefix"])
    assert (after["train_samples"], after["fingerprint"]) == (len(samples.train), samples.fingerprint)
    # A mixture without a tokenizer of its own takes that of data.corpus.
    mixed = report(capsys, path, "--data.mixture", "python-docs=3", "wikipedia-sample=1")["data"]["found"]
    assert (mixed[0]["weight"], mixed[0]["first"]) == ("3", ["tokenises the corpus"])
    assert mixed[1]["first"] == ["downloads gensim==4.4.0", "tokenises the corpus"]


def test_damaged_data_ends_as_in_training_with_the_rest_printed(
    tmp_path: Path, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = written(tmp_path, prefix)
    for file in prefix.parent.glob("tokens.*"):
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokens.json").write_text("{}")
    words = ["train", str(path), "--data.corpus", str(tmp_path / "tokens"), "--dry-run"]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert err.startswith(f"altup-moe: error: {tmp_path / 'tokens.json'}: ")
    assert "\nlayout " in out
    assert "\nend " in out
    assert f"data           refused: {tmp_path / 'tokens.json'}: " in out


def test_what_is_resumed_and_changed(tmp_path: Path, prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, config = written(tmp_path, prefix, train={"steps": 60})
    assert report(capsys, path)["resume"]["step"] == 0
    write_tensors(config.log.run_dir, head(config, 20, data_fingerprint=""), random_tensors(config))
    found = report(capsys, path, "--optim.clip_grad", "0.5", "--moe.backend", "torch")
    assert (found["resume"]["step"], found["resume"]["changes"]) == (20, {"optim.clip_grad": [1.0, 0.5]})
    assert (found["end"]["last_step"], found["end"]["steps_to_do"]) == (60, 40)
    assert main(["train", str(path), "--optim.clip_grad", "0.5", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert f"the run in {config.log.run_dir} goes on from step 20 (step_00000020)" in text
    assert "changed after step 20: optim.clip_grad 1.0 -> 0.5" in text
    assert main(["train", str(path), "--model.hidden_size", "32", "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert "resume         refused: model.hidden_size=32: " in out
    assert "was written with 16; use that, or another log.run_dir" in err
    start = ["--log.run_dir", str(tmp_path / "new"), "--checkpoint.initial_load_path", config.log.run_dir]
    found = report(capsys, path, *start)["resume"]
    assert (found["weights_only"], found["step"]) == (True, 0)
    assert not (tmp_path / "new").exists()


def test_other_tokens_are_refused(tmp_path: Path, prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, config = written(tmp_path, prefix, train={"steps": 60})
    write_tensors(config.log.run_dir, head(config, 20), random_tensors(config))
    assert main(["train", str(path), "--dry-run"]) == 2
    assert "was trained on other tokens" in capsys.readouterr().err


def test_a_run_in_progress_is_said(tmp_path: Path, prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, config = written(tmp_path, prefix)
    with locked_directory(Path(config.log.run_dir), "training", "wait"):
        assert main(["train", str(path), "--dry-run"]) == 0
        assert "another training runs in" in capsys.readouterr().out
    assert main(["train", str(path), "--dry-run"]) == 0
    assert "another training runs in" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--optim.learning_rat", "1"], "optim.learning_rat=1: unknown key; nearest is optim.learning_rate"),
        (["--parallel.expert", "3"], "parallel.expert=3: must divide moe.num_experts (4); 1, 2, 4 would fit"),
        (["--cluster", "nowhere"], "cluster='nowhere': "),
        (["--cluster"], "cluster='': needs a value"),
        (["--data.corpus", "none"], "data.corpus='none': there is no file none.idx"),
    ],
)
def test_mistakes_are_those_of_train(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(CONFIGS / "quickstart.yaml"), *words, "--dry-run"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith(f"altup-moe: error: {line}")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_size_of_a_checkpoint(precision: str, tmp_path: Path) -> None:
    """But for what stays fp32 under bf16, and the file's header."""
    import torch

    config = tiny(train={"precision": precision}, moe={"num_experts": 0, "layer_freq": 1})
    stored = random_tensors(config, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    assert sum(t.numel() * t.element_size() for t in stored.values()) == pytest.approx(
        checkpoint_bytes(config), rel=2e-3
    )


def test_durations() -> None:
    assert [spelled_duration(seconds) for seconds in (0.2153, 89, 120, 7200, 864000)] == [
        "0.215 s", "89 s", "2.0 min", "2.0 h", "10.0 days"
    ]  # fmt: skip


@pytest.mark.slow
def test_it_needs_no_torch() -> None:
    """The planner, the headers of checkpoints and the manifests of data do without it."""
    heavy = "{'torch', 'megatron', 'transformers', 'tensorboard', 'datasets'}"
    code = (
        f"import sys; from altup_moe.cli import main; main(sys.argv[1:]); print('heavy:', {heavy} & set(sys.modules))"
    )
    words = [sys.executable, "-c", code, "train", str(CONFIGS / "interleaved_4rank.yaml"), "--dry-run"]
    found = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": str(CONFIGS.parent)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert found.stdout.splitlines()[-1] == "heavy: set()"


def test_texts_and_tasks_that_are_generated_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--log.sample_interval", "7", "--log.sample_prompts", "The list", "--train.eval_tasks", "sst2", "cb"]
    assert main(["train", str(CONFIGS / "quickstart.yaml"), *words, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "sst2, cb with each validation, 64 examples" in text
    assert "samples every 7 steps and at the end" in text
    assert "rank 0 holds the whole model once more, 0.01 GiB" in text
