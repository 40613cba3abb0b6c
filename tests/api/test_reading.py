"""Configurations, plans, runs, checkpoints and studies: read without a process group, with the command's errors."""

from __future__ import annotations

import doctest
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from altup_moe import api
from altup_moe.api import configuration, planning, sessions
from altup_moe.cli import main
from altup_moe.config.load import save_config

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "golden" / "before_restructuring"


def test_sources_and_overrides(tmp_path: Path) -> None:
    shipped = api.load_config("quickstart")
    save_config(shipped, tmp_path / "run.yaml")
    assert api.load_config(tmp_path / "run.yaml") == api.load_config(shipped.to_dict()) == shipped
    assert api.load_config() == api.RunConfig()
    for overrides in (
        {"train.steps": 5, "optim.learning_rate": "1e-2"},
        ["--train.steps", "5", "--optim.learning_rate=1e-2"],
    ):
        config = api.load_config("quickstart", overrides)
        assert (config.train.steps, config.optim.learning_rate) == (5, 0.01)
        assert config.model == shipped.model


WRONG: list[tuple[Any, Any]] = [
    (None, {"train.stes": 3}),
    (None, {"optim.lr": 3}),
    (None, {"train.steps": "many"}),
    (None, {"altup.variant": "mine"}),
    ("quickstrat", {}),
    (None, {"parallel.tensor": 3}),
    (None, {"data.corpus": "nowhere"}),
]


@pytest.mark.parametrize(("source", "overrides"), WRONG)
def test_errors_are_the_commands(
    source: Any, overrides: dict, capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.yaml").write_text("")
    words = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    assert main(["train", source or "empty.yaml", *words]) == 2
    line = capsys.readouterr().err.strip().partition("error: ")[2]
    with pytest.raises(api.UserError) as caught:
        api.check_config(api.load_config(source, overrides))
    assert str(caught.value) == line


def test_the_world_is_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    config = api.load_config(None, {"parallel.tensor": 2})
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert api.world_size() == 1
    with pytest.raises(api.ConfigError, match=r"parallel\.tensor"):
        api.check_config(config)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert api.world_size() == 2
    api.check_config(config)
    with pytest.raises(api.ConfigError, match=r"parallel\.tensor"):
        api.check_config(config, world_size=1)


def test_a_plan() -> None:
    config = api.load_config(None, {"train.global_batch_size": 64})
    one, two = api.plan(config), api.plan(config, "h100x8", nodes=2)
    assert api.plan("altup_k4_gpu") == api.plan(api.load_config("altup_k4_gpu"))
    assert (one.gpus, two.gpus) == (8, 16)
    assert one.seconds > two.seconds > 0
    assert api.plan(config, straggler=2.0).seconds > 1.5 * one.seconds
    with pytest.raises(api.ConfigError, match="cluster='h100x9'"):
        api.plan(config, "h100x9")
    with pytest.raises(api.ConfigError, match="gpus=0"):
        api.plan(config, gpus=0)


def test_a_run_is_read(tmp_path: Path) -> None:
    run = api.read_run(OLD / "decoder")
    assert [line["step"] for line in run.metrics()] == list(range(1, 19))
    assert run.config.train.steps == 24
    assert run.latest == run.checkpoints()[-1] == OLD / "decoder/checkpoints/step_00000018"
    assert not run.complete
    assert api.read_run(OLD / "t5").complete
    with pytest.raises(api.ConfigError, match=r"holds no config\.yaml"):
        api.read_run(tmp_path)
    with pytest.raises(api.ConfigError, match=r"holds no config\.yaml"):
        api.load_model(tmp_path)
    save_config(api.RunConfig(), tmp_path / "config.yaml")
    empty = api.read_run(tmp_path)
    assert (empty.metrics(), empty.checkpoints(), empty.latest, empty.complete) == ([], [], None, False)


def test_a_checkpoint_is_read() -> None:
    """Tensors that two ranks wrote are whole, and those of kinds stand under their weights' names."""
    with api.read_checkpoint(OLD / "decoder") as checkpoint:
        assert checkpoint.path == OLD / "decoder/checkpoints/step_00000018"
        assert checkpoint.manifest.step == 18
        assert checkpoint.config == api.read_run(OLD / "decoder").config
        checkpoint.verify()
        assert "model.embed_tokens.weight" in checkpoint.names()
        m = checkpoint.config.model
        assert checkpoint.numpy("model.embed_tokens.weight").shape == (m.vocab_size, m.hidden_size)
        for name in checkpoint.names()[:5]:
            array, tensor = checkpoint.numpy(name), checkpoint.torch(name)
            assert array.shape == tuple(tensor.shape)
            np.testing.assert_array_equal(array, tensor.float().numpy())
        moments = checkpoint.numpy("exp_avg/model.embed_tokens.weight")
        assert moments.shape == (m.vocab_size, m.hidden_size)
        assert 0 < np.abs(moments).max() < 1
        assert checkpoint.names("exp_avg")
        assert set(checkpoint.tensors) >= {f"weights/{name}" for name in checkpoint.names()}
        with pytest.raises(KeyError, match=r"has no tensor model\.nothing"):
            checkpoint.numpy("model.nothing")
    with pytest.raises(api.UserError, match="is no checkpoint"):
        api.read_checkpoint(OLD)


def test_bf16_keeps_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    values = torch.tensor([1.0, -2.5, 3.140625, 0.0], dtype=torch.bfloat16)
    with api.read_checkpoint(OLD / "decoder") as checkpoint:
        name = checkpoint.names()[0]
        bits = values.view(torch.int16).numpy().view(np.uint16)
        monkeypatch.setattr(checkpoint._checkpoint, "read", lambda stored: bits)
        from dataclasses import replace

        stored = replace(checkpoint.tensors[f"weights/{name}"], dtype="BF16")
        monkeypatch.setitem(checkpoint.manifest.tensors, f"weights/{name}", stored)
        found = checkpoint.numpy(name)
    assert found.dtype == np.float32
    assert found.tolist() == values.float().tolist()


def test_a_study_is_read() -> None:
    directory = ROOT / "configs/study/results/moe_capacity"
    rows = api.read_study(directory)
    assert rows == api.read_study(directory / "rows.jsonl")
    frame = api.study_frame(directory)
    assert len(frame) == len(rows)
    first = rows[0]
    assert frame["quality.valid_loss"][0] == first.quality.valid_loss
    assert frame["latency.train_step.median"][0] == first.latency.train_step.median
    assert frame["hardware.cores"][0] == 2
    overrides = [column for column in frame.columns if column.startswith("overrides.")]
    assert f"overrides.{next(iter(rows[-1].overrides))}" in overrides
    assert not {"curve", "experts.load"} & set(frame.columns)
    assert api.study_frame(rows[:2])["quality.valid_loss"].tolist() == frame["quality.valid_loss"][:2].tolist()
    with pytest.raises(api.UserError, match="nowhere"):
        api.read_study(ROOT / "nowhere")


def test_options_of_generation_are_checked_first() -> None:
    for options in (
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"max_new_tokens": 0},
        {"seed": -1},
        {"temperature": math.inf},
    ):
        with pytest.raises(api.ConfigError, match=next(iter(options))):
            api.generate("nowhere", "text", **options)  # type: ignore[arg-type]
    with pytest.raises(api.ConfigError, match="corpus"):
        api.evaluate("nowhere", corpus="nowhere")
    with pytest.raises(api.ConfigError, match="samples"):
        api.evaluate("nowhere", samples=0)


def test_batches_of_tokens() -> None:
    import torch

    batch = api.next_token_batch(torch.arange(10, dtype=torch.int32).view(2, 5))
    assert batch.tokens.dtype == batch.labels.dtype == torch.int64
    assert batch.loss_mask.shape == (2, 4)
    with pytest.raises(ValueError, match=r"shape \[5\]"):
        api.next_token_batch(torch.arange(5))


@pytest.mark.parametrize("module", [configuration, planning, sessions])
def test_examples_in_docstrings(module: Any) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
