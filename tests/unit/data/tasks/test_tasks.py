"""Tasks: every row's texts, its right answer scored 100, a wrong one less, and rows that are none named."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from altup_moe.config import DataError, UserError
from altup_moe.config.data_checks import TASK_NAMES
from altup_moe.data.tasks.registry import TASKS, load_examples, load_task
from altup_moe.data.tasks.squad import sentence
from tests.unit.data.tasks.rows import ROWS, SQUAD


def test_the_names_are_those_that_the_configuration_knows() -> None:
    assert tuple(TASKS) == TASK_NAMES
    assert set(ROWS) == set(TASKS)
    assert all(name == task.name and task.description for name, task in TASKS.items())


@pytest.mark.parametrize("name", TASKS)
def test_a_row_becomes_text(name: str) -> None:
    row, inputs, targets = ROWS[name]
    task = TASKS[name]
    assert set(task.columns) <= set(row)
    example = task.examples(row)[0]
    assert (example.inputs, example.targets) == (inputs, targets)


@pytest.mark.parametrize("name", TASKS)
def test_right_answers_score_100_and_nonsense_does_not(name: str) -> None:
    row, _, _ = ROWS[name]
    task = TASKS[name]
    rows = [row]
    if isinstance(row.get("label"), int):  # every class: figures of one that is missing are 0
        rows += [{**row, "label": n} for n in range(3 if name == "cb" else 2)]
    if name == "stsb":
        rows.append({**row, "label": 1.2})
    examples = [example for one in rows for example in task.examples(one)]
    references = [example.reference for example in examples]
    # A wrong noun has no right text.
    right = [e.targets if e.trains else "nobody" for e in examples]
    figures = task.metrics([task.answer(f" {text} ") for text in right], references)
    if name == "stsb":
        assert all(value > 99 for value in figures.values())
    else:
        assert figures == {name: pytest.approx(100) for name in figures}
    nonsense = task.metrics([task.answer("@!")] * len(references), references)
    assert max(nonsense.values()) <= 50


def test_rows_without_a_label_have_no_example() -> None:
    for name in ("cb", "multirc", "wic", "wsc", "stsb", "cola"):
        for none in (-1, None, "-1", "", "-", -1.0, float("nan"), "<unk>"):
            assert TASKS[name].examples({**ROWS[name][0], "label": none}) == []
    for name in ("squad", "record"):
        empty = {"answers": {"text": []}} if name == "squad" else {"answers": []}
        assert TASKS[name].examples({**ROWS[name][0], **empty}) == []


@pytest.mark.parametrize(
    ("name", "spelled", "target"),
    [
        *(("rte", label, "not_entailment") for label in (1, "1", 1.0, "1.0", "not_entailment", "Not Entailment")),
        *(("rte", label, "entailment") for label in (0, "0", "Entailment", "ENTAILMENT ")),
        *(("boolq", label, "True") for label in (1, True, "1", "true", "TRUE", "T", "yes")),
        *(("boolq", label, "False") for label in (0, False, "false", "F", "No")),
        ("wsc", "true", "Mark"),
        ("stsb", "3.7", "3.6"),
        ("rotten-tomatoes", 1, "positive"),
        ("rotten-tomatoes", "Negative", "negative"),
    ],
)
def test_labels_may_be_spelled_otherwise(name: str, spelled: object, target: str) -> None:
    (example,) = TASKS[name].examples({**ROWS[name][0], "label": spelled})
    assert example.targets == target


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (
            "rte",
            {"label": "maybe"},
            "label is 'maybe', no label that is known; entailment, not_entailment would fit, or",
        ),
        ("rte", {"label": 2}, "label is 2, no label"),
        ("rte", {"label": 0.5}, r"label is 0\.5, no label"),
        ("rte", {"label": True}, "label is True, no label"),  # as a number it would be not_entailment
        ("boolq", {"label": "positive"}, "label is 'positive', no label"),
        ("cb", {"label": -2}, "label is -2, no label"),
        ("stsb", {"label": "much"}, "label is 'much', no number from 0 to 5"),
        ("stsb", {"label": 5.5}, r"label is 5\.5, no number"),
        ("wsc", {"span2_text": "she"}, "span2_text is 'she', no word of the text"),
        ("cola", {"sentence": None}, "sentence is None, no text"),
        ("squad", {"answers": {"text": [None], "answer_start": [0]}}, r"answers\.text is \[None\], no list of texts"),
        ("squad", {"answers": ["Ann"]}, r"answers is \['Ann'\], no table"),
        ("record", {"entities": "Ann, Bob"}, "entities is 'Ann, Bob', no list of texts"),
        ("rotten-tomatoes", {"label": "fresh"}, "label is 'fresh', no label"),
    ],
)
def test_what_cannot_be_read_is_named_with_file_row_and_value(
    name: str, change: dict[str, object], says: str, tmp_path: Path
) -> None:
    row = ROWS[name][0]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, [row, row, {**row, **change}])))
    with pytest.raises(DataError, match=rf"train\.jsonl: row 2 is no row of {name}: {says}"):
        load_examples(TASKS[name], "train", {name: tmp_path}, tmp_path)


def test_rows_without_a_label_are_counted(tmp_path: Path) -> None:
    rows = [{**ROWS["rte"][0], "label": label} for label in ("1", None, "Entailment", -1, "not_entailment", 0)]
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = load_task(TASKS["rte"], "validation", {"rte": tmp_path}, tmp_path)
    assert (len(found.examples), found.rows, found.unlabelled) == (4, 6, 2)
    (tmp_path / "validation.jsonl").write_text(json.dumps(rows[1]))
    with pytest.raises(DataError, match="no examples of rte for validation: none of its 1 rows has a label"):
        load_task(TASKS["rte"], "validation", {"rte": tmp_path}, tmp_path)


def test_a_text_is_one_answer() -> None:
    row = {**SQUAD, "answers": {"text": "Ann", "answer_start": 7}}
    for name in ("squad", "squad-bigbench-sentences"):
        (example,) = TASKS[name].examples(row)
        assert (example.targets, example.reference) == ("Ann", ["Ann"])
    (cloze,) = TASKS["record"].examples({**ROWS["record"][0], "answers": "Ann"})
    assert cloze.reference == ["Ann"]


def test_only_markup_is_dropped() -> None:
    row = {**ROWS["multirc"][0], "paragraph": "<b>Sent 1: </b>x<5 and y>3<br>so", "answer": "x < 5"}
    (example,) = TASKS["multirc"].examples(row)
    assert example.inputs.endswith("answer: x < 5 paragraph: Sent 1: x<5 and y>3 so")


@pytest.mark.parametrize(
    ("score", "text"), [(0.5, "0.4"), (2.5, "2.4"), (4.5, "4.4"), (0.3, "0.4"), (3.7, "3.6"), (5, "5.0")]
)
def test_half_a_fifth_goes_to_the_even_one(score: float, text: str) -> None:
    (example,) = TASKS["stsb"].examples({**ROWS["stsb"][0], "label": score})
    assert (example.targets, example.reference) == (text, score)


@pytest.mark.parametrize(
    ("text", "pronoun", "index", "marked"),
    [
        ("Bob asked Tom if he can", "he", 4, "Bob asked Tom if *he* can"),
        ("Ann  saw her", "her", 3, "Ann  saw *her*"),  # words stand between single spaces
        # As t5 spells two rows: punctuation at the pronoun, and an index that is one off.
        ('laughed. "Good for him," he said.', "him", 3, 'laughed. "Good for *him* ," he said.'),
        ("they might want to use it , but", "it", 4, "they might want to use *it* , but"),
        ("He said that he won", "He", 3, "He said that *he* won"),
    ],
)
def test_the_pronoun_is_starred(text: str, pronoun: str, index: int, marked: str) -> None:
    row = {**ROWS["wsc"][0], "text": text, "span2_text": pronoun, "span2_index": index}
    (example,) = TASKS["wsc"].examples(row)
    assert example.inputs == f"wsc: {marked}"


def test_two_files_of_a_split_are_not_chosen_from(tmp_path: Path) -> None:
    for suffix in (".json", ".jsonl"):
        (tmp_path / f"train{suffix}").write_text("[]")
    with pytest.raises(DataError, match=r"holds train\.jsonl and train\.json: which of them is train\?"):
        load_examples(TASKS["cb"], "train", {"cb": tmp_path}, tmp_path)


def test_several_answers_are_trained_on_and_scored_once() -> None:
    examples = TASKS["record"].examples(ROWS["record"][0])
    assert [(e.targets, e.evaluates) for e in examples] == [("Ann", True), ("Anna", False)]
    assert {tuple(e.reference) for e in examples} == {("Ann", "Anna")}


def test_a_wrong_noun_is_scored_but_not_trained_on() -> None:
    (example,) = TASKS["wsc"].examples({**ROWS["wsc"][0], "span1_text": "Pete", "label": 0})
    assert not example.trains
    assert example.evaluates
    metrics = TASKS["wsc"].metrics
    assert metrics(["the Mark"], [("Mark", 1)]) == metrics(["Mark"], [("Pete", 0)]) == {"accuracy": 100.0}
    assert metrics(["Pete"], [("Pete", 0)]) == metrics([""], [("Mark", 1)]) == {"accuracy": 0.0}
    assert metrics([""], [("Mark", 0)]) == metrics(["Mark's"], [("Mark", 1)]) == {"accuracy": 0.0}


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        ("Ann", 'She said: "It was Ann."'),
        ("4.5", "Then 4.5 m fell!"),
        ("fell! (No", "Then 4.5 m fell! (No more.)"),
        ("3 ends", "3 ends"),
    ],
)
def test_the_sentence_of_an_answer(answer: str, whole: str) -> None:
    context = 'It rained? She said: "It was Ann."  Then 4.5 m fell! (No more.) 3 ends'
    assert sentence(context, context.index(answer), len(answer)) == whole


def test_without_a_place_there_is_no_sentence(tmp_path: Path) -> None:
    name, row = "squad-bigbench-sentences", {**SQUAD, "answers": {"text": ["Ann"]}}
    (tmp_path / "validation.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match=f"row 0 is no row of {name}: KeyError"):
        load_examples(TASKS[name], "validation", {name: tmp_path}, tmp_path / "cache")


def test_nested_files_may_lack_the_places(tmp_path: Path) -> None:
    question = {"id": "1", "question": "Who?", "answers": [{"text": "Ann"}]}
    content = {"data": [{"paragraphs": [{"context": "It was Ann.", "qas": [question]}]}]}
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert load_examples(TASKS["squad"], "train", {"squad": tmp_path}, tmp_path)[0].targets == "Ann"


NESTED = {
    "version": "1.1",
    "data": [
        {
            "paragraphs": [
                {
                    "context": "It was Ann.",
                    "qas": [{"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 7}]}],
                }
            ]
        }
    ],
}


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "nested"])
def test_local_files(kind: str, tmp_path: Path) -> None:
    rows = [SQUAD, {**SQUAD, "question": "Really?"}]
    if kind == "jsonl":
        (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "validation.parquet")
    else:
        (tmp_path / "validation.json").write_text(json.dumps(NESTED if kind == "nested" else rows))
    found = load_examples(TASKS["squad"], "validation", {"squad": tmp_path}, tmp_path / "cache")
    assert found[0].inputs == "question: Who? context: It was Ann."
    assert len(found) == (1 if kind == "nested" else 2)
    with pytest.raises(DataError, match=r"holds no train file \(train\.jsonl"):
        load_examples(TASKS["squad"], "train", {"squad": tmp_path}, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("validation.jsonl", b'{"question": "a"}\n{"question": }\n', r"validation\.jsonl at byte 31: is not JSON"),
        ("validation.jsonl", b'{"question": "\xff"}\n', "at byte 14: is not UTF-8"),
        ("validation.jsonl", b'{"question": "a", "context": "b"}\n', "row 0 has no answers, which squad reads"),
        ("validation.jsonl", json.dumps({**SQUAD, "answers": 3}).encode(), "row 0 is no row of squad"),
        ("validation.jsonl", b"", "has no examples of squad"),
        ("validation.json", b'{"data": [{}]}', "not in SQuAD's format"),
        ("validation.json", b'{"rows": []}', "holds no list of rows"),
        ("validation.parquet", b"PAR1", "is no parquet file"),
    ],
)
def test_damaged_local_files_are_named(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says):
        load_examples(TASKS["squad"], "validation", {"squad": tmp_path}, tmp_path / "cache")


def test_without_the_hub_local_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"aps/super_glue: cannot be had .*data\.task_files") as error:
        load_examples(TASKS["cb"], "train", {}, tmp_path)
    assert "\n" not in str(error.value)
