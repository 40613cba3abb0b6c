"""Answers to tasks: batches of padded inputs answer as each alone, and what is printed is what was counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from altup_moe.config import ConfigError
from altup_moe.data.tasks.fit import check_classes
from altup_moe.data.tasks.records import Example, Passage, example
from altup_moe.data.tasks.registry import TASKS, load_examples
from altup_moe.data.tokenizer import Tokenizer
from altup_moe.inference.answers import Answers, answers, score
from altup_moe.inference.evaluate_tasks import evaluate_tasks_command
from altup_moe.inference.load_run import FinishedRun, load_run
from tests.unit.train.runs import finished, tiny, write_run

QUESTIONS = ["the cat", "a dog lay on the log and", "x", "the bird flew over the house, and the cat sat", "on the mat"]
EXAMPLES = [Example(question, "the log", n % 2) for n, question in enumerate(QUESTIONS)]


@pytest.fixture(scope="module")
def run(bpe: Tokenizer) -> FinishedRun:
    return finished(tiny(model={"seq_length": 48}), bpe, seed=3)


def by_hand(run: FinishedRun, example: Example, longest: int) -> str:
    """The likeliest token again and again, without cache or padding."""
    ids = [*run.tokenizer.encode(example.inputs), run.tokenizer.eod]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + longest and (len(ids) == start or ids[-1] != run.tokenizer.eod):
            ids.append(int(run.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return run.tokenizer.decode([i for i in ids[start:] if i != run.tokenizer.eod])


def test_answers_in_batches_are_those_of_each_alone(run: FinishedRun) -> None:
    longest = len(run.tokenizer.encode("the log")) + 1
    expected = [by_hand(run, example, longest) for example in EXAMPLES]
    assert len(set(expected)) > 1
    for batch_size in (1, 2, 5):
        assert answers(run, EXAMPLES, batch_size).texts == expected


def test_long_inputs_are_cut_to_leave_room(run: FinishedRun) -> None:
    example = Example("the cat sat " * 40, "the log", 0)
    (text,), cut, unread = vars(answers(run, [example], 4)).values()
    assert (cut, unread) == (1, 0)
    assert [text] == answers(run, [Example("the cat sat " * 30, "the log", 0)], 4).texts


def test_questions_behind_a_passage_are_read_whole(run: FinishedRun) -> None:
    """Four questions about one passage stay four; what does not fit even without it is not asked, and empty."""
    asked: list[str] = []
    plain = run.model.generate

    def generate(tokens: torch.Tensor, **arguments: Any) -> Any:
        kept = arguments["attention_mask"].bool()
        asked.extend(run.tokenizer.decode(row[keep].tolist()) for row, keep in zip(tokens, kept, strict=True))
        return plain(tokens, **arguments)

    passage, words = Passage("the cat sat on the mat " * 9), ("x", "on", "it is", "log")
    questions = [example(["boolq passage:", passage, f"question: {word}"], "True", 1) for word in words]
    hopeless = example(["boolq passage:", Passage("short"), "question: " + "why not? " * 20], "True", 1)
    model = SimpleNamespace(config=run.model.config, device=run.model.device, generate=generate)
    found = answers(replace(run, model=model), [*questions, hopeless], 1)
    assert (found.cut, found.unread, found.texts[4]) == (4, 1, "")
    assert [text.partition(" question: ")[2] for text in asked] == list(words)
    assert all(text.startswith("boolq passage: the cat sat") for text in asked)
    with pytest.raises(ConfigError, match=r"model\.seq_length=48: none of 1 examples fits"):
        answers(run, [hopeless], 1)


class Echo:
    """An encoder and a decoder that writes its input back behind the start token, ended and padded."""

    config = SimpleNamespace(is_encoder_decoder=True)
    device = torch.device("cpu")

    def generate(self, tokens: torch.Tensor, attention_mask: torch.Tensor, max_new_tokens: int, **_: Any) -> Any:
        assert torch.all(attention_mask.diff(dim=1) <= 0)  # padded on the right
        lengths = attention_mask.sum(1).tolist()
        assert all(int(row[n - 1]) == 0 for row, n in zip(tokens, lengths, strict=True))  # each ended
        return torch.cat([torch.full((len(tokens), 1), 7), tokens[:, :max_new_tokens]], dim=1)


def test_an_encoder_and_decoder_answer_through_the_same_door(run: FinishedRun) -> None:
    echo = replace(run, model=Echo(), config=tiny(model={"arch": "t5", "seq_length": 48, "decoder_seq_length": 48}))
    examples = [
        replace(e, targets="a long text that is nowhere near an answer at all, not even nearly") for e in EXAMPLES
    ]
    assert answers(echo, examples, 2).texts == QUESTIONS


def test_scores_stand_beside_the_majority(run: FinishedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    task = TASKS["sst2"]
    examples = [Example(f"{n}", ("negative", "positive")[n > 0], int(n > 0)) for n in range(4)]
    examples.append(Example("not scored", "negative", 0, evaluates=False))
    monkeypatch.setattr(
        "altup_moe.inference.answers.answers",
        lambda run, scored, size: Answers(["positive", "negative", " ", "x"], 2, 1),
    )
    result = score(run, task, examples, 2)
    assert (result.examples, result.metrics, result.majority) == (4, {"accuracy": 0.0}, {"accuracy": 75.0})
    assert (result.majority_answer, result.cut, result.unread) == ("positive", 2, 1)


def test_the_command(bpe: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", tiny(model={"seq_length": 48}), bpe)
    rows = [{"sentence": f"film {n}", "label": n % 2} for n in range(6)]
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {"sst2": tmp_path}
    kept = tmp_path / "answers.jsonl"
    assert evaluate_tasks_command(tmp_path / "run", ["sst2"], 3, files, 2, as_json=True, answers_file=kept) == 0
    found = json.loads(capsys.readouterr().out)
    (one,) = found["tasks"]
    assert (found["step"], one["task"], one["examples"], one["majority_answer"]) == (3, "sst2", 3, "negative")
    assert one["majority"]["accuracy"] == pytest.approx(200 / 3)
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    assert [(line["task"], line["reference"]) for line in lines] == [("sst2", 0), ("sst2", 1), ("sst2", 0)]
    examples = load_examples(TASKS["sst2"], "validation", files, tmp_path)[:3]
    assert [line["answer"] for line in lines] == answers(load_run(tmp_path / "run"), examples, 2).texts
    assert evaluate_tasks_command(tmp_path / "run", ["sst2"], None, files, 2, as_json=False) == 0
    assert "| 6 examples | in brackets: always 'negative'" in capsys.readouterr().out
    assert np.isfinite(one["metrics"]["accuracy"])
    assert (one["cut"], one["unread"], one["unlabelled"]) == (0, 0, 0)
    rows = [{"sentence": "film " * 30, "label": "Positive"}, {"sentence": "good", "label": -1}, rows[0]]
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert evaluate_tasks_command(tmp_path / "run", ["sst2"], None, files, 2, as_json=False) == 0
    assert capsys.readouterr().out.endswith(
        "\n  1 passages cut to what the model reads; 1 rows without a label left out\n"
    )


def test_a_class_that_the_decoder_cannot_write_is_refused(bpe: Tokenizer) -> None:
    model = {"arch": "t5", "decoder_seq_length": 4}
    with pytest.raises(ConfigError, match=r"model\.decoder_seq_length=4: sst2 answers 'positive', \d+ tokens") as error:
        check_classes(TASKS["sst2"], bpe, tiny(model=model).model)
    needed = int(str(error.value).partition(", ")[2].split()[0])
    check_classes(TASKS["sst2"], bpe, tiny(model={**model, "decoder_seq_length": needed}).model)
    with pytest.raises(ConfigError, match=r"model\.seq_length=4: sst2 answers"):
        check_classes(TASKS["sst2"], bpe, tiny(model={"seq_length": 4}).model)
