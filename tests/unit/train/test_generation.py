"""When texts and answers to tasks are due while a run trains, what is refused before it starts, and where texts go."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from altup_moe.config import ConfigError, DataError, LogConfig, RunConfig, UserError
from altup_moe.config.checks import check_config
from altup_moe.config.run_directory import samples_file
from altup_moe.data.tokenizer import Tokenizer
from altup_moe.inference.in_training import InTraining, prepare_inputs, read_prompts, unchanged_random_states
from altup_moe.parallel.topology import Topology
from altup_moe.train.generation import Due, GeneratedText, due_after, generates, open_generator, prepare_generation
from altup_moe.train.log_files import SampleLines
from altup_moe.train.loggers import Console, MLflow, WandB, open_loggers
from altup_moe.train.start_notes import run_notes
from altup_moe.train.tensorboard_files import TensorBoard
from tests.unit.train.records import record
from tests.unit.train.runs import tiny

TEXTS = [GeneratedText("one", " two\nlines"), GeneratedText('a "quoted"', "")]


def sampled(**log: Any) -> RunConfig:
    return tiny(log={"sample_interval": 5, "sample_prompts": ("the cat",), **log})


@pytest.mark.parametrize(
    ("step", "due"),
    [(4, Due()), (5, Due(texts=True)), (8, Due(tasks=True)), (40, Due(True, True)), (13, Due(True, True))],
)
def test_what_is_due(step: int, due: Due) -> None:
    """Texts every 5 steps, tasks with validations every 8, both after the last of 13 steps (or of 40)."""
    config = sampled()
    config = replace(config, train=replace(config.train, eval_tasks=("sst2",), eval_interval=8))
    assert due_after(config, step, 40 if step == 40 else 13) == due
    assert bool(due) == (step != 4)


def test_a_run_that_asks_for_nothing_loads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("altup_moe.train.generation.load_object", lambda path: pytest.fail(path))
    config, nobody = tiny(), SimpleNamespace()
    assert not generates(config)
    assert due_after(config, 13, 13) == Due()
    assert prepare_generation(config, nobody) is None
    assert open_generator(config, nobody, None) is None
    assert not [note for note in run_notes(config, 64, 300, 1) if "log.sample_interval" in note]
    (note,) = (note for note in run_notes(sampled(), 64, 300, 1) if "log.sample_interval" in note)
    assert "rank 0 holds the whole model once more" in note


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"log": {"sample_interval": 5}}, "log.sample_interval", "--log.sample_prompts"),
    ({"log": {"sample_interval": 0, "sample_prompts": ("a",)}}, "log.sample_interval", "at least 1"),
    ({"log": {"sample_temperature": 1e-9}}, "log.sample_temperature", "0 takes the likeliest token"),
    ({"log": {"sample_temperature": -1.0}}, "log.sample_temperature", "at least 0"),
    ({"log": {"sample_tokens": 0}}, "log.sample_tokens", "at least 1"),
    ({"log": {"sample_prompts_file": "nowhere.txt"}}, "log.sample_prompts_file", "no such file"),
    ({"train": {"eval_tasks": ("sst3",)}}, "train.eval_tasks", "no such task"),
    ({"train": {"eval_tasks": ("sst2", "sst2")}}, "train.eval_tasks", "each task once"),
    ({"train": {"eval_task_limit": 0}}, "train.eval_task_limit", "at least 1"),
]


@pytest.mark.parametrize(
    ("sections", "key", "fits"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_mistakes_are_found_before_the_start(sections: dict[str, Any], key: str, fits: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_config(tiny(**sections), 1)
    assert error.value.key == key
    assert fits in error.value.fits


def test_prompts_come_from_the_list_and_the_file(tmp_path: Path) -> None:
    (file := tmp_path / "prompts.txt").write_text("first line\n\n  second, with its spaces\n", encoding="utf-8")
    config = sampled(sample_prompts_file=str(file))
    check_config(config, 1)
    assert read_prompts(config) == ["the cat", "first line", "  second, with its spaces"]
    empty = sampled(sample_prompts=(), sample_prompts_file=str(file))
    file.write_bytes(b"\n\n")
    with pytest.raises(ConfigError, match="holds no prompt"):
        read_prompts(empty)
    file.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(UserError, match=r"prompts\.txt: 'utf-8' codec"):
        read_prompts(empty)


def task_config(directory: Path, rows: int, **train: Any) -> RunConfig:
    lines = [json.dumps({"sentence": f"film {n}", "label": n % 2}) + "\n" for n in range(rows)]
    (directory / "validation.jsonl").write_text("".join(lines))
    model = {"seq_length": 64}
    return tiny(model=model, train={"eval_tasks": ("sst2",), **train}, data={"task_files": (f"sst2={directory}",)})


def test_a_prompt_or_a_task_that_does_not_fit_is_named(bpe: Tokenizer, tmp_path: Path) -> None:
    assert prepare_inputs(sampled(), bpe).prompts == ["the cat"]
    long = "the bird flew over the house, " * 9
    with pytest.raises(ConfigError, match=r"has \d+ tokens, and the model was trained on 24; shorten it") as error:
        prepare_inputs(sampled(sample_prompts=("the cat", long)), bpe)
    assert (error.value.key, error.value.value) == (
        "log.sample_prompts",
        "the bird flew over the house, the bird flew over the ...",
    )
    # Without an interval nobody reads them.
    assert prepare_inputs(sampled(sample_interval=None, sample_prompts=(long,)), bpe).prompts == []
    config = task_config(tmp_path, 5, eval_task_limit=3)
    assert [e.reference for e in prepare_inputs(config, bpe).examples["sst2"]] == [0, 1, 0]
    everything = replace(config, train=replace(config.train, eval_task_limit=None))
    assert len(prepare_inputs(everything, bpe).examples["sst2"]) == 5
    with pytest.raises(ConfigError, match=r"model\.seq_length=4: sst2 answers"):
        prepare_inputs(replace(config, model=replace(config.model, seq_length=4)), bpe)
    (tmp_path / "validation.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"validation\.jsonl"):
        prepare_inputs(config, bpe)


def test_random_states_are_put_back(alone: Topology) -> None:
    def draws() -> tuple[Any, ...]:
        return torch.rand(3).tolist(), random.random(), float(np.random.random())

    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = draws()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    with unchanged_random_states():
        draws()
        torch.manual_seed(9)
    assert draws() == expected


@pytest.mark.parametrize("heard_at", [0, 2])
def test_a_signal_ends_the_work_between_two_prompts(
    heard_at: int, alone: Topology, bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is finished by then is kept; a run stopped for good by the scheduler must not wait for tasks."""
    from altup_moe.model.build import bare_chunks

    config = sampled(sample_prompts=("a", "b", "c", "d"), sample_tokens=2)
    asked: list[str] = []

    def continuation(run: Any, prompt: str, *_: Any) -> str:
        asked.append(prompt)
        return prompt.upper()

    monkeypatch.setattr("altup_moe.inference.in_training.continuation", continuation)
    generator = InTraining(config, alone, prepare_inputs(config, bpe))
    found = generator.generate(list(bare_chunks(config, alone)), 5, Due(texts=True), lambda: len(asked) > heard_at)
    assert [one.text for one in found.texts] == ["A", "B", "C"][: heard_at + 1]
    found = generator.generate(list(bare_chunks(config, alone)), 5, Due(texts=True), lambda: False)
    assert [one.text for one in found.texts] == ["A", "B", "C", "D"]


def test_texts_of_steps_that_are_done_again_are_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "samples.jsonl"
    for first, steps in ((1, (2, 4)), (3, (4,))):
        lines = SampleLines(path, first)
        for step in steps:
            lines.log(record(step))
            lines.log_texts(step, TEXTS)
        lines.close()
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["prompt"], line["text"]) for line in kept] == [
        (step, one.prompt, one.text) for step in (2, 4) for one in TEXTS
    ]
    assert len((tmp_path / "samples.removed.jsonl").read_text().splitlines()) == 2
    assert "samples.jsonl: 2 line(s) of steps from 3 on moved to samples.removed.jsonl" in capsys.readouterr().out


def test_the_file_is_there_with_samples_or_to_be_cleaned(tmp_path: Path) -> None:
    def kinds(**log: Any) -> list[str]:
        loggers = open_loggers(RunConfig(log=LogConfig(run_dir=str(tmp_path), tensorboard=False, **log)), 1)
        for logger in loggers:
            logger.close()
        return [type(logger).__name__ for logger in loggers]

    assert kinds() == ["JsonLines", "Console"]
    assert kinds(sample_interval=5) == ["JsonLines", "Console", "SampleLines"]
    assert samples_file(tmp_path).is_file()
    assert kinds() == ["JsonLines", "Console", "SampleLines"]


def test_the_console_keeps_a_text_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(steps=10, interval=4, first_step=1)
    console.log_texts(4, TEXTS)
    assert capsys.readouterr().out.splitlines() == [
        'sample of step 4: "one" -> " two\\nlines"',
        'sample of step 4: "a \\"quoted\\"" -> ""',
    ]


def test_tensorboard_has_a_text_for_each_prompt(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoard(tiny(log={"run_dir": str(tmp_path)}), first_step=1)
    logger.log(record(4, scores={"eval/sst2/accuracy": 62.5}))
    logger.log_texts(4, TEXTS)
    logger.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("eval/sst2/accuracy")] == [(4, 62.5)]
    shown = events.Tensors("samples/0/text_summary")[0]
    assert shown.step == 4
    assert shown.tensor_proto.string_val[0].decode() == "    one\n    ---\n     two\n    lines"
    assert "samples/1/text_summary" in events.Tags()["tensors"]


def test_trackers_get_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[Any] = []
    run = SimpleNamespace(log=lambda values, step: logged.append((values, step)), define_metric=lambda *_, **__: None)
    table = SimpleNamespace
    wandb = SimpleNamespace(init=lambda **_: run, Table=lambda **given: table(**given), Image=None)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    WandB("mine", tiny(log={"run_dir": str(tmp_path)})).log_texts(4, TEXTS)
    ((values, step),) = logged
    assert step == 4
    assert values["samples"].columns == ["step", "prompt", "text"]
    assert values["samples"].data == [[4, one.prompt, one.text] for one in TEXTS]
    files: dict[str, str] = {}
    nothing = dict.fromkeys(("set_tracking_uri", "set_experiment", "start_run", "log_params"), lambda *_, **__: None)
    mlflow = SimpleNamespace(**nothing, log_text=lambda text, file: files.update({file: text}))
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    MLflow("mine", tiny(log={"run_dir": str(tmp_path)})).log_texts(4, TEXTS)
    ((file, text),) = files.items()
    assert file == "samples/step_00000004.jsonl"
    assert [json.loads(line)["text"] for line in text.splitlines()] == [one.text for one in TEXTS]


def test_scores_are_keys_of_a_step_s_record() -> None:
    one = record(4, valid_loss=3.0, valid_bits_per_byte=1.5, scores={"eval/sst2/accuracy": 62.5, "eval/cb/f1": 30.0})
    assert list(one.to_dict())[-2:] == ["eval/sst2/accuracy", "eval/cb/f1"]
    assert "scores" not in one.to_dict()
    assert one.line(9).endswith("bits/byte 1.5000 | eval/sst2/accuracy 62.5 | eval/cb/f1 30.0")
